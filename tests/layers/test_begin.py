"""Layers that begin as DeepSets: what they compute, and that evolution strategies perturb them as they do DeepSets."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from lopt.layers.begin import START, begin_as_deep_sets
from lopt.layers.unf import unf_layer
from lopt.networks.update import DeepSetsConfig, UNFConfig
from lopt.symmetry.spec import WeightSpec
from tasks.paper_specs import CNN, MLP, RNN, TRANSFORMER
from tests.paper_features import SEEN, finished

SPEC = WeightSpec.parse({"k": "i! h", "b": "h", "r": "h h"})


def test_a_shared_map_plus_a_multiple_of_the_terms():
    inner = unf_layer(SPEC, 3, 2)
    layer = begin_as_deep_sets(inner, SPEC, 3, 2, 0.1)
    theta = layer.init(jax.random.key(0))
    usual = inner.init(jax.random.split(jax.random.key(0))[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, START * b, rtol=1e-6), theta["terms"], usual)
    x = {
        path: jax.random.normal(jax.random.key(i), (*shape, 3))
        for i, (path, shape) in enumerate((("k", (4, 5)), ("b", (5,)), ("r", (5, 5))))
    }
    out, own = layer.apply(theta, x), inner.apply(theta["terms"], x)
    for path, y in out.items():
        expected = x[path] @ theta["shared"]["kernel"] + jnp.broadcast_to(theta["shared"]["bias"], y.shape) + 0.1 * own[path]
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("space", [MLP, CNN, RNN, TRANSFORMER], ids=lambda space: space.title)
@pytest.mark.parametrize("share", ["none", "role"])
def test_noise_of_evolution_strategies_moves_f_as_it_moves_deep_sets(space, share):
    """Root mean square of the change of f under one sigma for every coefficient, over that of DeepSets."""
    spec = space.true
    shapes = {
        path: tuple(math.prod(min(space.sizes.get(f.name, 5), 5) for f in axis) for axis in axes) for path, axes in spec.leaves
    }
    keys = jax.random.split(jax.random.key(0), len(shapes))
    seen = finished(
        {path: jax.random.normal(key, (*shape, 8)) for key, (path, shape) in zip(keys, shapes.items(), strict=True)},
        jnp.zeros(11),
    )

    def change(config):
        network = config.make(spec, SEEN, 1)

        @jax.jit
        def one(key):
            theta = network.init(key)
            flat, unravel = ravel_pytree(theta)
            noise = 0.01 * jax.random.normal(jax.random.fold_in(key, 1), flat.shape)
            a, b = (network.apply(unravel(flat + sign * noise), seen) for sign in (1, -1))
            total = sum(jnp.sum(jnp.square(a[path] - b[path])) for path in a)
            return total / sum(y.size for y in a.values())

        return float(np.sqrt(np.mean([one(jax.random.key(i)) for i in range(4)])))

    ratio = change(UNFConfig((32, 32), share=share)) / change(DeepSetsConfig((32, 32)))
    assert 1 / 1.5 < ratio < 1.5
