"""What the update network sees of each weight: value, gradient, momenta, and the time.

"Universal Neural Functionals" (NeurIPS 2024), section 5.3: 19 channels per weight, W, its gradient, six momenta, and eleven time
features tanh(t / s - 1). The time features are the same for every weight, so they are kept apart and enter the first layer once.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lopt.layers.digest import clip_and_normalize, is_digested
from lopt.symmetry.spec import PyTree, named_leaves

MOMENTUM_DECAYS = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
TIME_SCALES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5)

NUM_WEIGHT_CHANNELS = 2 + len(MOMENTUM_DECAYS)
NUM_TIME_CHANNELS = len(TIME_SCALES)
NUM_CHANNELS = NUM_WEIGHT_CHANNELS + NUM_TIME_CHANNELS


class WeightFeatures(NamedTuple):
    """Features of every weight.

    Attributes:
      weights: leaf path -> [*leaf.shape, 8] float32: value, gradient, momenta; clipped and normalised.
      time: [11] float32, shared by all weights.
      channels: leaf path -> value, gradient and momenta as they come, arrays [c, *leaf.shape] of 8 channels in all: those of the leaves
        that are not in `weights`, as their features are only digested (`lopt.layers.digest`).
    """

    weights: dict[str, jax.Array]
    time: jax.Array
    channels: Mapping[str, tuple[jax.Array, ...]] = {}


def time_features(count: jax.Array) -> jax.Array:
    """tanh(t / s - 1) for every time scale s: [11]; `count` is the number of inner steps done, int32 []."""
    return jnp.tanh(count.astype(jnp.float32) / jnp.asarray(TIME_SCALES, jnp.float32) - jnp.float32(1))


def finish(channels: Sequence[jax.Array]) -> jax.Array:
    """The features [*leaf.shape, 8] of channels [c, *leaf.shape]."""
    return jnp.moveaxis(clip_and_normalize(jnp.concatenate(channels)), 0, -1)


def weight_features(params: PyTree, grads: PyTree, momenta: PyTree, count: jax.Array) -> WeightFeatures:
    """Features of all weights.

    Args:
      params: pytree of [...], any float dtype.
      grads: pytree of the same structure and shapes.
      momenta: pytree of the same structure, leaves [6, ...] float32.
      count: inner steps done, int32 [].
    """
    weights, digested = {}, {}
    for (path, w), (_, g), (_, m) in zip(named_leaves(params), named_leaves(grads), named_leaves(momenta), strict=True):
        channels = w[None].astype(jnp.float32), g[None].astype(jnp.float32), m
        if is_digested(w.shape):
            digested[path] = channels
        else:
            weights[path] = finish(channels)
    return WeightFeatures(weights, time_features(count), digested)
