"""The UNF layer against brute force over indices, and under random group elements."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.layers.deep_sets import deep_sets_layer
from lopt.layers.unf import coefficients_from_terms, unf_layer
from lopt.symmetry.basis import make_plan
from lopt.symmetry.spec import SpecError, WeightSpec
from tests import brute_force

SPACES = {
    "mlp": ({"k0": "i h", "b0": "h", "k1": "h o", "b1": "o"}, {"i": 4, "h": 3, "o": 2}),
    "recurrent": ({"e": "v e", "r": "h h", "f": "e h", "b": "h"}, {"v": 3, "e": 2, "h": 4}),
    "rank3": ({"t": "a a a", "u": "a b a", "w": "b"}, {"a": 3, "b": 2}),
    "convolution": ({"k": "kh kw c d", "b": "d", "s": ""}, {"kh": 2, "kw": 3, "c": 2, "d": 2}),
    "composed": ({"q": "e (n d)", "o": "(n d) e", "one": "1 e"}, {"e": 3, "n": 2, "d": 2}),
    "size one": ({"k": "a b", "b": "b"}, {"a": 1, "b": 3}),
    "two kept the same": ({"x": "a a b", "y": "b a"}, {"a": 3, "b": 2}),
}


def build(name, c_in=2, dtype=jnp.float32):
    tree, sizes = SPACES[name]
    spec = WeightSpec.parse(tree, **(sizes if name == "composed" else {}))
    shapes = {path: [int(np.prod([sizes[f.name] for f in axis])) for axis in axes] for path, axes in spec.leaves}
    features = {
        path: jax.random.normal(jax.random.fold_in(jax.random.key(1), i), (*shape, c_in), dtype)
        for i, (path, shape) in enumerate(shapes.items())
    }
    return spec, sizes, features


def act(spec, features, element):
    """A group element on features: on every channel alike."""
    with_channels = WeightSpec.parse({path: f"{spec.notation(path)} channels!" for path in spec.paths}, **dict(spec.known_sizes))
    return with_channels.permute(features, element)


@pytest.mark.parametrize("name", SPACES)
def test_equals_brute_force(name):
    spec, sizes, features = build(name)
    rng = np.random.default_rng(0)
    names = {path: [factor.name for factor in spec.factors(path)] for path in spec.paths}
    coefficients = {
        out: {
            (source, partition): rng.normal(size=(2, 3)).astype(np.float32)
            for source in spec.paths
            for partition in brute_force.valid_partitions(names[out], names[source])
        }
        for out in spec.paths
    }
    bias = {path: rng.normal(size=3).astype(np.float32) for path in spec.paths}
    theta = coefficients_from_terms(make_plan(spec), coefficients, bias)
    out = jax.jit(unf_layer(spec, 2, 3).apply)(theta, features)
    expanded = {path: np.asarray(x).reshape([*(sizes[n] for n in names[path]), 2]) for path, x in features.items()}
    expected = brute_force.apply_layer(names, coefficients, bias, expanded)
    for path in spec.paths:
        np.testing.assert_allclose(out[path], expected[path].reshape(out[path].shape), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", [unf_layer, deep_sets_layer])
@pytest.mark.parametrize("name", SPACES)
def test_commutes_with_every_permutation(name, layer):
    spec, _, features = build(name)
    init, apply, _ = layer(spec, 2, 3)
    theta = jax.jit(init)(jax.random.key(0))

    apply = jax.jit(apply)
    out = apply(theta, features)
    for seed in range(3):
        element = spec.sample(jax.random.key(seed), {p: x[..., 0] for p, x in features.items()})
        moved = apply(theta, act(spec, features, element))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), moved, act(spec, out, element))


def test_a_wrong_permutation_breaks_it():
    """The check above can fail: rows and columns of a recurrent kernel must move together."""
    free = WeightSpec.parse({"r": "h g", "b": "h"})
    tied = WeightSpec.parse({"r": "h h", "b": "h"})
    features = {"r": jax.random.normal(jax.random.key(0), (4, 4, 1)), "b": jax.random.normal(jax.random.key(1), (4, 1))}
    init, apply, _ = unf_layer(tied, 1, 1)
    theta = jax.jit(init)(jax.random.key(2))
    element = {"g": jnp.asarray([1, 2, 3, 0])}
    squeeze = lambda tree: {p: x[..., 0] for p, x in tree.items()}  # noqa: E731
    apply = jax.jit(apply)
    moved = apply(theta, {p: x[..., None] for p, x in free.permute(squeeze(features), element).items()})
    expected = free.permute(squeeze(apply(theta, features)), element)
    assert np.max(np.abs(squeeze(moved)["r"] - expected["r"])) > 1e-2


def test_output_is_of_order_one_for_unit_inputs():
    spec, _, features = build("mlp", c_in=16)
    init, apply, _ = unf_layer(spec, 16, 64)
    out = jax.jit(lambda key: apply(init(key), features))(jax.random.key(0))
    for x in out.values():
        assert 0.2 < float(jnp.std(x)) < 2


def test_keeps_half_precision():
    spec, _, features = build("mlp", dtype=jnp.bfloat16)
    init, apply, _ = unf_layer(spec, 2, 3)
    theta = jax.tree.map(lambda x: x.astype(jnp.bfloat16), jax.jit(init)(jax.random.key(0)))
    assert {x.dtype for x in jax.eval_shape(apply, theta, features).values()} == {jnp.dtype(jnp.bfloat16)}


def test_features_that_do_not_fit_name_the_leaf():
    spec, _, features = build("mlp")
    init, apply, _ = unf_layer(spec, 2, 3)
    theta = jax.jit(init)(jax.random.key(0))
    with pytest.raises(SpecError, match=r"leaf 'k0' of shape .* 'h' size 3, but it has size 7 by 'b0'"):
        apply(theta, {**features, "b0": jnp.zeros((7, 2))})


def test_coefficients_must_be_those_of_the_plan():
    plan = make_plan(WeightSpec.parse({"w": "a"}))
    good = {("w", ((0, 1),)): np.ones((1, 1)), ("w", ((0,), (1,))): np.ones((1, 1))}
    coefficients_from_terms(plan, {"w": good}, {"w": np.zeros(1)})
    with pytest.raises(ValueError, match="no coefficient for the term w -> w"):
        coefficients_from_terms(plan, {"w": dict(list(good.items())[:1])}, {"w": np.zeros(1)})
    with pytest.raises(ValueError, match="1 terms that are not in the plan"):
        coefficients_from_terms(plan, {"w": {**good, ("w", ((0,), (2,))): np.ones((1, 1))}}, {"w": np.zeros(1)})


def test_theta_of_another_spec_is_refused_by_name():
    theta = unf_layer(WeightSpec.parse({"w": "a b"}), 1, 1).init(jax.random.key(0))
    with pytest.raises(
        ValueError, match=r"another spec: .*\['a', 'a b', 'b'\] beyond this spec's, and none for \['c', 'c d', 'd'\]"
    ):
        unf_layer(WeightSpec.parse({"w": "c d"}), 1, 1).apply(theta, {"w": jnp.ones((2, 3, 1))})
