"""Layers over leaves with axes in parts: what they are over the blocks, put together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.layers.begin import begin_as_deep_sets
from lopt.layers.folded import folded_unf_layer
from lopt.layers.nfn import nfn_layer
from lopt.layers.positions import position_unf_layer
from lopt.layers.shared_unf import shared_unf_layer
from lopt.layers.unf import unf_layer
from lopt.layers.untied import untied_unf_layer
from lopt.symmetry import WeightSpec

TREE = {"embed": "v! e", "kernel": "(e | h) (gates! h)", "bias": "(gates! h)", "out": "(h | x!) o!"}
SHAPES = {"embed": (3, 2), "kernel": (5, 12), "bias": (12,), "out": (5, 4)}
SPEC = WeightSpec.parse(TREE, gates=4)
SIZES = {"e": 2, "gates": 4, "h": 3, "o": 4, "v": 3, "x": 2}
CHAIN = WeightSpec.parse({"b": "h", "k": "x! h", "out": "(h | x!) o!"})  # NFN's leaves have at most two permutations


def features(spec, channels):
    shapes = SHAPES if spec is SPEC else {"b": (3,), "k": (2, 3), "out": (5, 4)}
    return {path: jax.random.normal(jax.random.key(i), (*shape, channels)) for i, (path, shape) in enumerate(shapes.items())}


LAYERS = {
    "unf": lambda spec: unf_layer(spec, 2, 3),
    "unf with sizes": lambda spec: unf_layer(spec, 2, 3, SIZES),
    "shared": lambda spec: shared_unf_layer(spec, 2, 3),
    "positions": lambda spec: position_unf_layer(spec, 2, 3),
    "untied": lambda spec: untied_unf_layer(spec, 2, 3, SIZES),
    "folded": lambda spec: folded_unf_layer(spec, 2, 3, SIZES, ["gates", "o", "v", "x"]),
    "nfn": lambda spec: nfn_layer(spec, 2, 3, SIZES),
    "begun": lambda spec: begin_as_deep_sets(unf_layer(spec, 2, 3), spec, 2, 3, 0.1),
}


@pytest.mark.parametrize("name", LAYERS)
def test_parts_are_treated_as_leaves(name):
    spec = CHAIN if name == "nfn" else SPEC
    layer, blocks = LAYERS[name](spec), LAYERS[name](spec.blocks)
    theta, x, apply = layer.init(jax.random.key(1)), features(spec, 2), jax.jit(layer.apply)
    jax.tree.map(np.testing.assert_array_equal, theta, blocks.init(jax.random.key(1)))
    out = apply(theta, x)
    assert {path: y.shape for path, y in out.items()} == {path: (*y.shape[:-1], 3) for path, y in x.items()}
    assert any(np.ptp(y) > 0 for y in out.values())

    alone = spec.join(jnp, jax.jit(blocks.apply)(theta, spec.split(x, {name: SIZES[name] for name in spec.names})))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), out, alone)

    # Equivariant, as what it is over the blocks is.
    with_channels = WeightSpec.parse({path: f"{spec.notation(path)} c!" for path in spec.paths}, **dict(spec.known_sizes))
    element = with_channels.sample(jax.random.key(2), x)
    moved = with_channels.permute(out, element)
    after = apply(theta, with_channels.permute(x, element))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), after, moved)
