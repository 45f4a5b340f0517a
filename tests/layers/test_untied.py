"""Untied coefficients: at every index of the fixed axes the layer is a plain one, with that index's coefficients."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.layers.unf import unf_layer
from lopt.layers.untied import untied_unf_layer
from lopt.symmetry import SpecError, WeightSpec

SPEC = WeightSpec.parse(
    {"conv": "(k! c!) h", "bias": "h", "mid": "h h", "head": "h classes!", "out": "classes!", "gain": "heads! d@heads classes!"},
    k=2,
)
SIZES = {"k": 2, "c": 3, "h": 4, "classes": 2, "heads": 2, "d": 3}
SHAPES = {"conv": (6, 4), "bias": (4,), "mid": (4, 4), "head": (4, 2), "out": (2,), "gain": (2, 3, 2)}
FIXED = ("k", "c", "classes", "heads")


def features(channels: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    return {path: jnp.asarray(rng.normal(size=(*shape, channels)), jnp.float32) for path, shape in SHAPES.items()}


def random_theta(layer):
    shapes = jax.eval_shape(layer.init, jax.random.key(0))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes)


def test_every_index_has_the_plain_layer_with_its_own_coefficients():
    untied, plain = untied_unf_layer(SPEC, 2, 3, SIZES), unf_layer(SPEC, 2, 3)
    theta, x = random_theta(untied), features(2)
    out = jax.jit(untied.apply)(theta, x)
    apply = jax.jit(plain.apply)
    for index in itertools.product(*(range(SIZES[name]) for name in FIXED)):
        at = dict(zip(FIXED, index, strict=True))
        weights = {label: w[tuple(at[name] for name in label.split() if name in at)] for label, w in theta["weights"].items()}
        places = {path: [f.name for f in SPEC.factors(path)] for path in SPEC.paths}
        bias = [theta["bias"][path][tuple(at[name] for name in places[path] if name in at)] for path in SPEC.paths]
        expected = apply({"weights": weights, "bias": jnp.concatenate(bias)}, x)
        for path, names in places.items():
            here = tuple(at.get(name, slice(None)) for name in names)
            shape = [SIZES[name] for name in names]
            ours, theirs = (np.asarray(y[path]).reshape(*shape, 3)[here] for y in (out, expected))
            np.testing.assert_allclose(ours, theirs, atol=2e-4, err_msg=f"{path} at {at}")


def test_theta_grows_with_a_fixed_axis_and_not_with_its_square():
    spec = WeightSpec.parse({"w": "pixels! h"})

    def count(pixels: int) -> int:
        layer = untied_unf_layer(spec, 1, 1, {"pixels": pixels, "h": 3})
        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(layer.init, jax.random.key(0))))

    assert count(4) - count(2) == count(6) - count(4)


def test_another_size_of_a_fixed_axis_is_refused():
    layer = untied_unf_layer(SPEC, 1, 1, {**SIZES, "classes": 3})
    with pytest.raises(SpecError, match=r"\{'classes': \(3, 2\)\}"):
        layer.apply(layer.init(jax.random.key(0)), features(1))
