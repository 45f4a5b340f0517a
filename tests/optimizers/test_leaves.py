"""Params as people have them: complex weights, whole models, numbers, keys, gradients of a part, keys that collide."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopt.features.presets import CustomFeatures
from lopt.networks.update import DeepSetsConfig
from lopt.optimizers.config import LearnedOptimizerConfig
from lopt.optimizers.direction import DirectionRule
from lopt.optimizers.leaves import pair, weights_of
from lopt.optimizers.momentum import LearnedSGDMConfig
from lopt.symmetry.spec import WeightSpec

CONFIGS = {
    "direction": LearnedOptimizerConfig(DirectionRule(learning_rate=0.1), CustomFeatures(), DeepSetsConfig((4,))),
    "sgdm": LearnedSGDMConfig(),
}


@pytest.fixture(params=CONFIGS)
def tx(request):
    optimizer = CONFIGS[request.param].make(WeightSpec(()))
    return optimizer.opt_fn(optimizer.init(jax.random.key(0)))


def equal(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), one, other)


@pytest.mark.parametrize("dtype", [jnp.complex64, jnp.float32])
def test_a_complex_weight_is_two_real_ones(tx, dtype):
    """The minimum of |z - (1 + 2i)|^2 is found, with the steps of its real and imaginary part as leaves of their own."""
    goal = jnp.asarray([1 + 2j, -3 + 0.5j], jnp.complex64)
    if dtype == jnp.complex64:
        params, loss = {"z": jnp.zeros(2, dtype)}, lambda p: jnp.sum(jnp.abs(p["z"] - goal) ** 2)
    else:
        params = {"z": {"imaginary": jnp.zeros(2), "real": jnp.zeros(2)}}
        loss = lambda p: jnp.sum(jnp.abs(jax.lax.complex(p["z"]["real"], p["z"]["imaginary"]) - goal) ** 2)  # noqa: E731

    def step(carry, _):
        params, state = carry
        grads = jax.tree.map(jnp.conj, jax.grad(loss)(params))
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(lambda params: jax.lax.scan(step, (params, tx.init(params)), length=100)[0][0])
    found = run(params)["z"]
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(dtype)}
    found = np.asarray(found) if dtype == jnp.complex64 else np.asarray(found["real"]) + 1j * np.asarray(found["imaginary"])
    np.testing.assert_allclose(found, goal, atol=0.2)


def test_a_whole_model_trains_as_its_arrays_do(tx):
    """Functions, numbers and counters of an equinox model are left alone, wherever they are given."""

    class Net(eqx.Module):
        linear: eqx.nn.Linear
        dropout: eqx.nn.Dropout
        calls: jax.Array
        seed: jax.Array
        activation: object

    key = jax.random.key(0)
    net = Net(eqx.nn.Linear(3, 2, key=key), eqx.nn.Dropout(0.0), jnp.asarray(3), key, jnp.tanh)
    grads = eqx.filter_grad(lambda net, x: jnp.sum(net.activation(net.linear(x))))(net, jnp.ones(3))
    weights = eqx.filter(net, eqx.is_inexact_array)
    expected, after = tx.update(grads, tx.init(weights), weights)
    for start in (weights, eqx.filter(net, eqx.is_array)):
        for params in (weights, eqx.filter(net, eqx.is_array), net):
            state = tx.init(start)
            updates, state = tx.update(grads, state, params)
            equal(updates, expected)
            equal(state, after)
            assert jax.tree.structure(updates) == jax.tree.structure(grads)
            eqx.apply_updates(net, updates)


def test_numbers_are_trained_where_they_have_gradients(tx):
    params = {"w": jnp.ones(2), "scale": 2.0}
    grads = jax.grad(lambda p: jnp.sum(p["scale"] * p["w"]))(params)
    updates, _ = tx.update(grads, tx.init(params), params)
    expected, _ = tx.update(grads, tx.init(params), jax.tree.map(jnp.asarray, params))
    equal(updates, expected)
    assert float(updates["scale"]) < 0


def test_gradients_without_values_move_nothing(tx):
    params = {"w": jnp.ones(2), "n": jnp.arange(3), "flag": np.asarray([True])}
    grads = jax.grad(lambda p: jnp.sum(p["w"] ** 2), allow_int=True)(params)
    updates, state = tx.update(grads, tx.init(params), params)
    assert all(not np.any(updates[name]) and updates[name].dtype == params[name].dtype for name in ("n", "flag"))
    alone = {"w": params["w"]}
    equal(updates["w"], tx.update({"w": grads["w"]}, tx.init(alone), alone)[0]["w"])
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(params))


def test_a_frozen_weight_stays_while_the_others_go_on(tx):
    """Gradients of a part: its weights have their updates, the others none, and the state keeps its structure."""
    params = {"a": jnp.ones(3), "b": jnp.full(2, 2.0)}
    state = tx.init(params)
    updates, after = tx.update({"a": jnp.ones(3), "b": None}, state, params)
    assert updates["b"] is None
    assert jax.tree.structure(after) == jax.tree.structure(state)
    whole, _ = tx.update({"a": jnp.ones(3), "b": jnp.zeros(2)}, state, params)
    equal(updates["a"], whole["a"])
    part = {"a": params["a"], "b": None}
    equal(tx.update({"a": jnp.ones(3), "b": None}, tx.init(part), params)[0], tx.update(part, tx.init(part), part)[0])


def test_leaves_whose_paths_would_collide_have_steps_of_their_own(tx):
    shapes = {"a": {"b/w": (2, 3)}, "a/b": {"w": (4,)}, "l": [(5,)], "l/0": (5, 2)}
    params = jax.tree.map(jnp.ones, shapes, is_leaf=lambda x: isinstance(x, tuple))
    grads = jax.tree.map(lambda w: jnp.sin(jnp.arange(w.size, dtype=jnp.float32)).reshape(w.shape), params)
    updates, _ = tx.update(grads, tx.init(params), params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(updates):
        alone = {"w": dict(jax.tree_util.tree_leaves_with_path(grads))[path]}
        ones = jax.tree.map(jnp.ones_like, alone)
        equal(leaf, tx.update(alone, tx.init(ones), ones)[0]["w"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"more": 1.0}, "a gradient for 'more', which the params lack"),
        ({"n": jnp.ones(3)}, r"a gradient for 'n', but only arrays of floats are trained, and it is int32\[3\]"),
        ({"w": jnp.ones(2, jnp.int32)}, r"the gradient for 'w' is int32\[2\], not an array of floats"),
        ({"w": jnp.ones(2, jnp.complex64)}, r"the gradient for 'w' is complex64\[2\], but the weight is real"),
        ({"w": jnp.ones(3)}, r"the gradient for 'w' has shape \(3,\), the weight \(2,\)"),
    ],
)
def test_a_gradient_that_fits_no_weight_is_named(tx, change, message):
    params = {"w": jnp.ones(2), "n": jnp.arange(3)}
    with pytest.raises(ValueError, match=message):
        tx.update({"w": jnp.ones(2)} | change, tx.init(params), params)


def test_a_state_of_other_weights_is_refused(tx):
    params = {"w": jnp.ones(2), "rate": 0.5}
    with pytest.raises(ValueError, match=r"call init with the params that gradients are of.*\['rate'\] have no gradients"):
        tx.update({"w": jnp.ones(2), "rate": None}, tx.init({"v": jnp.ones(2), "u": jnp.ones(2), "w": jnp.ones(2)}), params)


def test_optax_finds_the_weights_in_the_state(tx):
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    state = tx.init(params)
    marked = optax.tree.map_params(tx, lambda x, w: x + w, state, params)
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(marked), strict=True):
        np.testing.assert_array_equal(after, np.asarray(before) + (1 if before.shape else 0))  # all but counters
    assert len(jax.tree.leaves(state)) > 2


def test_what_is_chosen_is_what_has_gradients():
    params = {"w": jnp.ones(2), "c": jnp.ones(1), "f": jnp.tanh}
    found = pair({"w": jnp.ones(2), "c": None, "f": None}, params, lambda weights: len(jax.tree.leaves(weights)) == 1)
    assert jax.tree.leaves(found.weights)[0] is params["w"]
    assert weights_of(params)["f"] is None
