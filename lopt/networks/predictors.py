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
from lopt.layers.dense import init_dense, perceptron
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
    """A network that predicts something of a model from its weights: equivariant layers, invariant pooling, a perceptron.

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
        return perceptron(theta["perceptron"], x)

    return Predictor(init, apply)


QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


def statistics(spec: WeightSpec, features: Features) -> jax.Array:
    """Mean, variance and the 0, 25, 50, 75, 100 percentiles of each tensor's channels: [tensors * 7 * C]."""

    def of_tensor(x: jax.Array) -> jax.Array:
        rows = jnp.reshape(x, (-1, x.shape[-1]))
        quantiles = jnp.quantile(rows, jnp.asarray(QUANTILES, jnp.float32), axis=0)
        return jnp.ravel(jnp.concatenate([jnp.mean(rows, axis=0)[None], jnp.var(rows, axis=0)[None], quantiles]))

    return jnp.concatenate([of_tensor(features[path]) for path in spec.paths])


def statistics_predictor(
    spec: WeightSpec, *, channels: int = 1, hidden: Sequence[int] = (600, 600), outputs: int = 1
) -> Predictor:
    """StatNN: a perceptron on statistics of each tensor; invariant under any permutation of a tensor's entries.

    Args:
      spec: of the weights; its tensors are all that is used.
      channels: of the input features.
      hidden: widths of the perceptron's hidden layers.
      outputs: numbers predicted.

    References:
      Unterthiner et al., "Predicting Neural Network Accuracy from Weights", 2020, arXiv 2002.11448.
    """
    widths = ((2 + len(QUANTILES)) * channels * len(spec.paths), *hidden, outputs)

    def init(key: jax.Array) -> PyTree:
        return init_dense(jax.random.split(key, len(widths)), widths)

    return Predictor(init, lambda theta, features: perceptron(theta, statistics(spec, features)))
