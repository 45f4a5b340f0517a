"""The autoencoders: what they compute, and the symmetry of a variational one; test_all_tasks.py has what every task promises."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tasks.autoencoder import AutoencoderConfig, autoencoder, autoencoder_spec
from tests.tasks.common import Mover, batch_of, changed, general, make, random_element

VAE = {"variational": True, "hidden": (7,), "latent": 5, "batch_size": 6}
KEY = jax.random.key(3)


def reference(params, images, noise=None):
    """The pixels' logits and the divergence in float64, written out for one hidden layer."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def dense(name, h):
        return h @ p[name]["kernel"] + p[name]["bias"]

    h = np.maximum(dense("encoder0", images), 0)
    z, divergence = dense("latent", h), np.zeros(len(images))
    if noise is not None:
        s = dense("log_variance", h)
        divergence = 0.5 * (np.exp(s) + z**2 - 1 - s).sum(axis=1)
        z = z + np.exp(s / 2) * np.asarray(noise, np.float64)
    return dense("pixels", np.maximum(dense("decoder0", z), 0)), divergence


@pytest.mark.parametrize("variational", [False, True])
def test_loss_and_metrics_equal_the_formula(variational):
    task = make("autoencoder", **VAE | {"variational": variational})
    params, batch = jax.tree.map(lambda w: 0.5 * w, general(task)), batch_of(task)
    x = np.asarray(batch["image"], np.float64).reshape(6, 64) / 16
    noise = np.asarray(jax.random.normal(KEY, (6, 5))) if variational else None
    logits, divergence = reference(params, x, noise)
    loss = (np.logaddexp(0, logits) - x * logits).mean() + divergence.mean() / 64
    assert float(jax.jit(task.loss)(params, KEY, batch)) == pytest.approx(loss, rel=1e-5)
    metrics = jax.jit(task.metrics)(params, KEY, batch)
    assert float(metrics.pop("squared_error")) == pytest.approx(((1 / (1 + np.exp(-logits)) - x) ** 2).mean(), rel=1e-5)
    if variational:
        assert float(metrics.pop("divergence")) == pytest.approx(divergence.mean(), rel=1e-4)
    assert not metrics
    assert task.initial_loss == math.log(2)
    assert task.name == ("digits8_vae_7_5" if variational else "digits8_autoencoder_7_5")


def test_the_spec_of_a_variational_one_is_true_where_the_noise_is_reordered_too():
    task = make("autoencoder", **VAE)
    params, x = general(task), jax.random.uniform(KEY, (6, 64))
    _, apply = autoencoder(64, (7,), 5, variational=True)
    noise = jax.random.normal(KEY, (6, 5))
    logits, divergence = jax.jit(apply)(params, x, noise)
    element = random_element(task.spec, params, np.random.default_rng(0))
    moved = task.spec.permute(params, element)
    assert np.any(element["latent"] != np.arange(5))

    def same(noise):
        found = jax.jit(apply)(moved, x, noise)
        return all(np.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(found, (logits, divergence), strict=True))

    reordered = [noise[:, element["latent"]], noise[:, np.argsort(element["latent"])]]
    assert sum(map(same, reordered)) == 1  # one of the two directions is the element's
    assert not same(noise)


def test_a_variational_one_has_gradients_everywhere_and_starts_at_the_initial_loss():
    task = make("autoencoder", **VAE)
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), task.param_shapes())
    step = jax.jit(jax.value_and_grad(task.loss))
    assert float(step(zero, KEY, batch_of(task))[0]) == pytest.approx(math.log(2), rel=1e-5)
    loss, gradient = step(jax.jit(task.init)(KEY), KEY, batch_of(task))
    assert all(np.isfinite(leaf).all() and np.any(leaf) for leaf in jax.tree.leaves(gradient))
    assert float(loss) != float(step(jax.jit(task.init)(KEY), jax.random.key(4), batch_of(task))[0]), "the latent is drawn"


def test_wrong_specs_are_found_out():
    task = make("autoencoder", hidden=(6,), latent=6)
    mover, spec = Mover(task), autoencoder_spec(1)
    assert mover.change(changed(spec), seed=0) < 1e-5
    for wrong in (
        {"latent__bias": "free"},
        {"decoder0__kernel": "free decoder0"},
        {"decoder0__kernel": "latent encoder0"},
        {"pixels__bias": "free"},
        {"encoder0__kernel": "free encoder0"},
    ):
        assert mover.change(changed(spec, **wrong), seed=0) > 1e-4, wrong


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"latent": 0}, "AutoencoderConfig.latent must be an integer of at least 1, not 0"),
        ({"hidden": (0,)}, "AutoencoderConfig.hidden[0] must be an integer of at least 1, not 0"),
        ({"image_size": 9}, "image_size must be from 1 to 8 for 'digits', not 9"),
    ],
)
def test_bad_settings_are_named(settings, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        AutoencoderConfig(**settings)
