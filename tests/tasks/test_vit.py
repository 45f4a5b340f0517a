"""The Transformer on patches: what it computes, and which specs of it are wrong; test_all_tasks.py has what every task promises."""

import re

import jax
import numpy as np
import pytest

from lopt.symmetry.spec import named_leaves
from tasks.transformer import Sizes
from tasks.vit import ViTConfig, patches, vit, vit_spec
from tests.tasks.common import Mover, batch_of, general, make

SETTINGS = {"image_size": 4, "width": 6, "heads": 2, "head_width": 3, "mlp": 6, "batch_size": 4, "activation": "tanh"}


def reference_logits(params, rows):
    """One image's patches in float64, a head and a place at a time."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def dense(x, p):
        return x @ p["kernel"] + p["bias"]

    def norm(x, p):
        centered = x - x.mean(-1, keepdims=True)
        return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["offset"]

    x = dense(rows, p["patch"]) + p["positions"]
    for index in range(2):
        block = p[f"h{index}"]
        y = norm(x, block["ln1"])
        q, k, v = (dense(y, block[name]) for name in ("query", "key", "value"))
        mixed = np.zeros_like(q)
        for head in (slice(0, 3), slice(3, 6)):
            for place in range(len(x)):
                weights = np.exp(k[:, head] @ q[place, head] / 3**0.5)
                mixed[place, head] = weights / weights.sum() @ v[:, head]
        x = x + dense(mixed, block["attn_out"])
        x = x + dense(np.tanh(dense(norm(x, block["ln2"]), block["mlp0"])), block["mlp1"])
    return dense(norm(x, p["ln_f"]).mean(axis=0), p["head"])


def test_the_loss_equals_the_formula():
    task = make("vit", **SETTINGS)
    params, batch = general(task), batch_of(task)
    images = np.asarray(batch["image"], np.float64) / 16
    losses = []
    for image, label in zip(images, np.asarray(batch["label"]), strict=True):
        rows = np.stack([image[i : i + 2, j : j + 2].ravel() for i in (0, 2) for j in (0, 2)])
        logits = reference_logits(params, rows)
        losses.append(np.log(np.exp(logits).sum()) - logits[label])
    assert float(jax.jit(task.loss)(params, jax.random.key(0), batch)) == pytest.approx(np.mean(losses), rel=1e-5)
    assert task.name == "digits4_vit_2x6"


def test_every_patch_sees_all_and_places_are_told_apart():
    init, apply = vit((4, 4, 1), 2, Sizes(3, blocks=1, width=6, heads=1, head_width=4, mlp=5))
    params = jax.jit(init)(jax.random.key(0))
    image = jax.random.uniform(jax.random.key(1), (1, 4, 4, 1))
    turned = np.concatenate([image[:, 2:], image[:, :2]], axis=1)
    assert np.abs(jax.jit(apply)(params, image) - jax.jit(apply)(params, turned)).max() > 1e-4
    params["positions"] = 0 * params["positions"]  # without them the order of patches is nothing
    np.testing.assert_allclose(jax.jit(apply)(params, image), jax.jit(apply)(params, turned), rtol=1e-4, atol=1e-6)
    assert patches(image, 2).shape == (1, 4, 4)


def test_wrong_specs_are_found_out():
    task = make("vit", **SETTINGS)
    mover = Mover(task)
    assert mover.change(task.spec, seed=0) < 1e-5
    assert mover.change(vit_spec(2), seed=0) > 1e-4, "heads are no one permutation of all features"
    assert mover.change(task.spec.relax(), seed=0) > 1e-4
    assert [path for path, _ in named_leaves(task.param_shapes())] == list(task.spec.paths)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"patch": 3}, "ViTConfig.patch must divide image_size 8, not 3"),
        ({"patch": 0}, "ViTConfig.patch must be an integer of at least 1, not 0"),
        ({"heads": 0}, "ViTConfig.heads must be an integer of at least 1, not 0"),
    ],
)
def test_bad_settings_are_named(settings, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        ViTConfig(**settings)
