"""Invariant predictors: from the weights of a network to numbers about it, whatever the order of its hidden units.

"Universal Neural Functionals" (NeurIPS 2024), section 5.1: equivariant layers with ReLU, the mean over all axes of each tensor, and
a multilayer perceptron on the means of all tensors.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lopt.layers.base import Features, Layer, chain
from lopt.layers.dense import init_dense
from lopt.symmetry.spec import PyTree, WeightSpec


class Predictor(NamedTuple):
    """A function of weight-space features as a pair of pure functions.

    Attributes:
      init: `init(key) -> theta`.
      apply: `apply(theta, features) -> [outputs]`, invariant under the permutations of the spec.
    """

    init: Callable[[jax.Array], PyTree]
    apply: Callable[[PyTree, Features], jax.Array]


def invariant_pooling(spec: WeightSpec, features: Features) -> jax.Array:
    """The mean over all axes of each tensor, one after the other in the order of `spec.paths`: [tensors * C]."""
    return jnp.concatenate([jnp.mean(features[path], axis=tuple(range(features[path].ndim - 1))) for path in spec.paths])


def invariant_predictor(
    spec: WeightSpec,
    layer: Callable[[WeightSpec, int, int], Layer],
    *,
    channels: Sequence[int] = (1, 16, 16, 16),
    hidden: Sequence[int] = (512,),
    outputs: int = 1,
) -> Predictor:
    """Equivariant layers, invariant pooling, a perceptron.

    Args:
      spec: of the weights.
      layer: `layer(spec, c_in, c_out)`, such as `unf_layer`.
      channels: of the input features and of each equivariant layer.
      hidden: widths of the perceptron's hidden layers.
      outputs: numbers predicted.

    Raises:
      ValueError: if there is no equivariant layer.

    Example:
      >>> from lopt.layers.unf import unf_layer
      >>> predictor = invariant_predictor(WeightSpec.parse({"w": "a b"}), unf_layer, channels=(1, 4), hidden=(8,))
      >>> predictor.apply(predictor.init(jax.random.key(0)), {"w": jnp.ones((3, 2, 1))}).shape
      (1,)
    """
    if len(channels) < 2:
        raise ValueError(f"channels must name those of the input and of at least one layer, got {tuple(channels)}")
    equivariant = chain(*(layer(spec, c_in, c_out) for c_in, c_out in itertools.pairwise(channels)))
    widths = (len(spec.paths) * channels[-1], *hidden, outputs)

    def init(key: jax.Array) -> PyTree:
        keys = jax.random.split(key, len(widths))
        return {"equivariant": equivariant.init(keys[-1]), "perceptron": init_dense(keys, widths)}

    def apply(theta: PyTree, features: Features) -> jax.Array:
        x = invariant_pooling(
            spec, {path: jax.nn.relu(y) for path, y in equivariant.apply(theta["equivariant"], features).items()}
        )
        for i in range(len(widths) - 1):
            dense = theta["perceptron"][f"dense{i}"]
            x = (jax.nn.relu(x) if i > 0 else x) @ dense["kernel"] + dense["bias"]
        return x

    return Predictor(init, apply)
