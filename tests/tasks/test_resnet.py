"""The residual network: what it computes, and which specs of it are wrong; test_all_tasks.py has what every task promises."""

import re

import jax
import numpy as np
import pytest
from scipy.signal import correlate

from tasks.resnet import ResNetConfig, resnet_spec
from tests.tasks.common import Mover, batch_of, changed, general, make

SETTINGS = {"channels": (4, 4), "image_size": 4, "batch_size": 5}


def reference_logits(params, images, axes):
    """In float64, [B, H, W, C], an image and a pair of channels at a time."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def conv(x, kernel, stride):
        size = x.shape[1]
        missing = max((-(-size // stride) - 1) * stride + 3 - size, 0)
        padded = np.pad(x, ((0, 0), *[(missing // 2, missing - missing // 2)] * 2, (0, 0)))
        out = [correlate(image, kernel[..., o], mode="valid")[..., 0] for image in padded for o in range(kernel.shape[-1])]
        out = np.stack(out).reshape(len(x), kernel.shape[-1], *out[0].shape)
        return np.moveaxis(out, 1, -1)[:, ::stride, ::stride]

    def norm(x, p):
        mean, variance = x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)
        return (x - mean) / np.sqrt(variance + 1e-5) * p["scale"] + p["offset"]

    def relu(x):
        return np.maximum(x, 0)

    x = relu(norm(conv(images, p["stem"]["kernel"], 1), p["norm"]))
    for stage in range(2):
        block, stride = p[f"stage{stage}_block0"], stage + 1
        added = relu(norm(conv(x, block["conv0"]["kernel"], stride), block["norm0"]))
        added = norm(conv(added, block["conv1"]["kernel"], 1), block["norm1"])
        x = relu((x[:, ::2, ::2] @ block["shortcut"]["kernel"] if stage else x) + added)
    return x.mean(axis=(1, 2)) @ p["head"]["kernel"] + p["head"]["bias"]


@pytest.mark.parametrize(("normalization", "axes"), [("batch", (0, 1, 2)), ("layer", (1, 2, 3))])
def test_the_loss_equals_the_formula(normalization, axes):
    task = make("resnet", **SETTINGS, normalization=normalization)
    params, batch = general(task), batch_of(task)
    logits = reference_logits(params, np.asarray(batch["image"], np.float64)[..., None] / 16, axes)
    labels = np.asarray(batch["label"])
    loss = (np.log(np.exp(logits).sum(1)) - logits[np.arange(5), labels]).mean()
    assert float(jax.jit(task.loss)(params, jax.random.key(0), batch)) == pytest.approx(loss, rel=1e-4)
    assert task.name == f"digits4_resnet_{normalization}_1x4_4"


def test_wrong_specs_are_found_out():
    """Of one size throughout, so that streams and insides can be confused."""
    mover, spec = Mover(make("resnet", **SETTINGS)), resnet_spec(2, 1)
    assert mover.change(changed(spec), seed=0) < 1e-5
    for wrong in (
        {"stage0_block0__norm1__scale": "free"},
        {"stage0_block0__conv1__kernel": "a! b! inside0_0 inside0_0"},
        {"stage1_block0__shortcut__kernel": "stream1 stream1"},
        {"stage1_block0__conv0__kernel": "a! b! stream1 inside1_0"},
        {"stem__kernel": "free b! colors! stream0"},
        {"head__bias": "free"},
    ):
        assert mover.change(changed(spec, **wrong), seed=0) > 1e-4, wrong


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"channels": ()}, "ResNetConfig.channels must have at least 1 entry, not ()"),
        ({"blocks": 0}, "ResNetConfig.blocks must be an integer of at least 1, not 0"),
        ({"normalization": "group"}, "ResNetConfig.normalization must be one of batch, layer, not 'group'"),
    ],
)
def test_bad_settings_are_named(settings, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        ResNetConfig(**settings)
