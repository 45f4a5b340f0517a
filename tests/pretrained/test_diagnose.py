"""Losses on another scale: what the networks of shipped optimizers see of them, and what cures it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lopt
from lopt.features.momenta import Momenta
from lopt.features.presets import CustomFeatures
from lopt.features.second_moments import GradientOverRoot, MomentaOverRoot, SecondMoment
from lopt.features.weights import Gradient, Value
from lopt.networks.update import DeepSetsConfig
from lopt.optimizers.config import LearnedOptimizerConfig
from lopt.optimizers.direction import DirectionRule
from lopt.optimizers.gated import GatedRule
from lopt.pretrained.diagnose import diagnose
from lopt.symmetry.spec import WeightSpec
from tests.pretrained.older import older

NAME = str(older("small-mixture-deep-sets"))


def slow(value):
    return pytest.param(value, marks=pytest.mark.slow)


X = jax.random.normal(jax.random.key(1), (64, 8))
PARAMS = {"w": 0.5 * jax.random.normal(jax.random.key(0), (8, 16)), "v": 0.3 * jax.random.normal(jax.random.key(2), (16, 8))}


def loss(params, scale=1.0):
    """A little autoencoder; times 784 it is a sum over pixels where it was a mean."""
    return scale * jnp.mean(jnp.square(jnp.tanh(X @ params["w"]) @ params["v"] - X))


def train(tx, scale, steps=20):
    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, scale), state, params)
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(lambda params: jax.lax.scan(step, (params, tx.init(params)), length=steps)[0])
    params, state = run(PARAMS)
    return float(loss(params)), params, state


@pytest.mark.parametrize("scale", [slow(1e-3), slow(1.0), slow(784.0), 1e3])
def test_clipped_gradients_cure_a_loss_of_another_scale(scale):
    tx = optax.chain(optax.clip_by_global_norm(1.0), lopt.load(NAME))
    found, params, state = train(tx, scale)
    assert found < float(loss(PARAMS))
    if scale >= 1:
        grads = jax.grad(loss)(params, scale)
        clipped, _ = optax.clip_by_global_norm(1.0).update(grads, optax.EmptyState())
        assert diagnose(NAME, clipped, params, state).clipped["gradient"] == 0


@pytest.mark.parametrize("name", ["lopt-direction", pytest.param("lopt-direction-unf", marks=pytest.mark.slow)])
def test_directions_train_alike_whatever_the_scale_of_the_loss(name):
    """Not to the last digit: of the gradient as it is one of thirty features is clipped, as Celo2's is."""
    spec = lopt.infer_spec(loss, PARAMS) if name.endswith("unf") else None
    found = [train(lopt.load(name, learning_rate=0.03, spec=spec), scale)[0] for scale in (1e-3, 1.0, 1e3)]
    assert max(found) < 0.5 * float(loss(PARAMS))
    assert max(found) < 1.2 * min(found)


@pytest.mark.parametrize("scale", [784.0, slow(1e5)])
def test_a_loss_that_is_a_sum_is_told(scale):
    """What diverges without a word otherwise."""
    before = float(loss(PARAMS))
    assert diagnose(NAME, jax.grad(loss)(PARAMS), PARAMS).is_well
    found, _, _ = train(lopt.load(NAME), scale)
    assert not found < before
    told = diagnose(NAME, jax.grad(loss)(PARAMS, scale), PARAMS)
    assert not told.is_well
    assert told.clipped["gradient"] > 0.5
    assert "clip_by_global_norm" in str(told)


def test_gradients_that_are_too_small_are_told():
    told = diagnose(NAME, jax.grad(loss)(PARAMS, 1e-6), PARAMS)
    assert told.vanished["gradient"] == 1.0
    assert told.vanished["value"] == 0.0
    assert not told.is_well


def test_what_is_kept_of_past_gradients_is_looked_at_too():
    tx, grads = optax.chain(optax.identity(), lopt.load(NAME)), jax.tree.map(lambda w: jnp.full_like(w, 0.3), PARAMS)
    state = tx.init(PARAMS)
    assert diagnose(NAME, grads, PARAMS, state).clipped["momentum 0.99"] == 0.0
    for _ in range(4):
        _, state = jax.jit(tx.update)(grads, state, PARAMS)
    told = diagnose(NAME, grads, PARAMS, state)  # a sum of five gradients of 0.3
    assert (told.clipped["momentum 0.99"], told.clipped["momentum 0.1"], told.clipped["gradient"]) == (1.0, 0.0, 0.0)


def test_a_state_of_another_optimizer_is_refused():
    with pytest.raises(ValueError, match="holds none of a learned optimizer"):
        diagnose(NAME, PARAMS, PARAMS, optax.adam(0.1).init(PARAMS))


@pytest.mark.parametrize("rule", [DirectionRule(), GatedRule()], ids=["direction", "gated"])
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_scale_invariant_rules_do_not_care(rule, scale):
    of_v = {"decay": 0.95, "eps": 0.0, "bias_correction": True}
    parts = (
        Value(),
        Gradient(),
        Momenta(bias_correction=True),
        SecondMoment(**of_v),
        MomentaOverRoot(**of_v),
        GradientOverRoot(**of_v),
    )
    optimizer = LearnedOptimizerConfig(rule, CustomFeatures(parts=parts, eps=1e-18), DeepSetsConfig((8,))).make(WeightSpec(()))
    theta = optimizer.init(jax.random.key(3))
    tx = optimizer.opt_fn(theta)
    grads = [jax.tree.map(lambda w, t=t: jnp.cos(3.0 * w + t), PARAMS) for t in range(3)]

    @jax.jit
    def last(scale):
        state, updates = tx.init(PARAMS), None
        for each in grads:
            updates, state = tx.update(jax.tree.map(lambda g: scale * g, each), state, PARAMS)
        return updates

    expected = last(jnp.float32(1))
    for a, b in zip(jax.tree.leaves(last(jnp.float32(scale))), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * float(jnp.max(jnp.abs(b))))
