"""The DeepSets layers by hand, and what they commute with: any permutation whatever."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.layers.deep_sets import deep_sets_layer, pooled_deep_sets_layer
from lopt.symmetry import WeightSpec

SPEC = WeightSpec.parse({"kernel": "inputs! hidden", "bias": "hidden", "scale": ""})
SHAPES = {"kernel": (4, 3), "bias": (3,), "scale": ()}


def features(c_in):
    keys = jax.random.split(jax.random.key(0), len(SHAPES))
    return {path: jax.random.normal(key, (*shape, c_in)) for key, (path, shape) in zip(keys, SHAPES.items(), strict=True)}


def by_hand(theta, x):
    """Float64 numpy, weight by weight."""
    theta = {name: np.asarray(value, np.float64) for name, value in theta.items()}
    weights = np.concatenate([np.asarray(leaf, np.float64).reshape(-1, leaf.shape[-1]) for leaf in x.values()])
    out = [weight @ theta["kernel"] + theta["bias"] for weight in weights]
    if "pooled" in theta:
        out = [y + sum(weights) / len(weights) @ theta["pooled"] for y in out]
    ends = np.cumsum([leaf.size // leaf.shape[-1] for leaf in x.values()])
    parts = zip(x.items(), np.split(np.stack(out), ends[:-1]), strict=True)
    return {path: part.reshape(*leaf.shape[:-1], -1) for (path, leaf), part in parts}


@pytest.mark.parametrize(("layer", "names"), [(deep_sets_layer, {"kernel"}), (pooled_deep_sets_layer, {"kernel", "pooled"})])
def test_by_hand(layer, names):
    init, apply, _ = layer(SPEC, 2, 5)
    theta = init(jax.random.key(1))
    assert {name: value.shape for name, value in theta.items()} == {**dict.fromkeys(names, (2, 5)), "bias": (5,)}
    assert all(np.std(theta[name]) > 0.1 for name in names)
    theta["bias"] = jnp.arange(5.0)
    found, expected = apply(theta, features(2)), by_hand(theta, features(2))
    assert set(found) == set(SHAPES)
    for path, y in found.items():
        np.testing.assert_allclose(y, expected[path], atol=1e-5)


def flat(x):
    return jnp.concatenate([jnp.reshape(leaf, (-1, leaf.shape[-1])) for leaf in x.values()])


def unflat(weights, shapes=SHAPES):
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])
    parts = jnp.split(weights, ends[:-1])
    return {path: jnp.reshape(part, (*shape, -1)) for (path, shape), part in zip(shapes.items(), parts, strict=True)}


@pytest.mark.parametrize("layer", [deep_sets_layer, pooled_deep_sets_layer])
def test_commutes_with_permuting_all_weights_across_tensors(layer):
    init, apply, _ = layer(SPEC, 2, 3)
    theta = init(jax.random.key(1))
    x = features(2)
    order = jax.random.permutation(jax.random.key(2), flat(x).shape[0])
    moved = flat(apply(theta, unflat(flat(x)[order])))
    np.testing.assert_allclose(moved, flat(apply(theta, x))[order], atol=1e-6)


@pytest.mark.parametrize(("layer", "sees"), [(deep_sets_layer, False), (pooled_deep_sets_layer, True)])
def test_only_the_pooled_layer_sees_other_weights(layer, sees):
    init, apply, _ = layer(SPEC, 2, 3)
    theta, x = init(jax.random.key(1)), features(2)
    change = apply(theta, {**x, "bias": x["bias"] + 1})["kernel"] - apply(theta, x)["kernel"]
    assert bool(np.max(np.abs(change)) > 1e-3) is sees


@pytest.mark.parametrize("layer", [deep_sets_layer, pooled_deep_sets_layer])
def test_keeps_half_precision(layer):
    init, apply, _ = layer(SPEC, 2, 3)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (init(jax.random.key(1)), features(2)))
    assert {y.dtype for y in apply(*half).values()} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("layer", [deep_sets_layer, pooled_deep_sets_layer])
def test_empty_tensors_add_nothing(layer):
    init, apply, _ = layer(SPEC, 2, 3)
    theta, x = init(jax.random.key(1)), features(2)
    out = apply(theta, {**x, "empty": jnp.zeros((0, 4, 2))})
    assert out.pop("empty").shape == (0, 4, 3)
    jax.tree.map(np.testing.assert_array_equal, out, apply(theta, x))


@pytest.mark.parametrize("layer", [deep_sets_layer, pooled_deep_sets_layer])
def test_64_bit_floats(layer):
    with jax.enable_x64(True):
        init, apply, _ = layer(SPEC, 2, 3)
        double = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (init(jax.random.key(1)), features(2)))
        found = apply(*double)
        for path, expected in by_hand(*double).items():
            assert found[path].dtype == jnp.float64
            np.testing.assert_allclose(found[path], expected, atol=1e-14)
