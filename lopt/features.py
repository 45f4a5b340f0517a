"""What the update network sees of each weight: value, gradient, momenta, and the time.

"Universal Neural Functionals" (NeurIPS 2024), section 5.3: 19 channels per weight, W, its gradient, six momenta, and eleven time
features tanh(t / s - 1). The time features are the same for every weight, so they are kept apart and enter the first layer once.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lopt.layers.digest import is_large
from lopt.symmetry.spec import PyTree, named_leaves

MOMENTUM_DECAYS = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
TIME_SCALES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5)

NUM_WEIGHT_CHANNELS = 2 + len(MOMENTUM_DECAYS)
NUM_TIME_CHANNELS = len(TIME_SCALES)
NUM_CHANNELS = NUM_WEIGHT_CHANNELS + NUM_TIME_CHANNELS


class LargeFeatures(NamedTuple):
    """Features of a large tensor before they are put together.

    Attributes:
      channels: value, gradient and momenta as they come, [1, *leaf.shape], [1, *leaf.shape] and [6, *leaf.shape].
      scale: [8] float32, what their channels are multiplied with after they are clipped.
    """

    channels: tuple[jax.Array, ...]
    scale: jax.Array


class WeightFeatures(NamedTuple):
    """Features of every weight.

    Attributes:
      weights: leaf path -> [*leaf.shape, 8] float32: value, gradient, momenta; clipped and normalised.
      time: [11] float32, shared by all weights.
      large: leaf path -> those of the leaves that are not in `weights`.
    """

    weights: dict[str, jax.Array]
    time: jax.Array
    large: Mapping[str, LargeFeatures] = {}


def time_features(count: jax.Array) -> jax.Array:
    """tanh(t / s - 1) for every time scale s: [11]; `count` is the number of inner steps done, int32 []."""
    return jnp.tanh(count.astype(jnp.float32) / jnp.asarray(TIME_SCALES, jnp.float32) - jnp.float32(1))


def clip_and_normalize(x: jax.Array) -> jax.Array:
    """Clip to [-1, 1], then divide by the root mean square over all axes but the first, plus 1e-5.

    Args:
      x: [C, ...], one channel a row: channels of very different scales, gradients and long momenta, become comparable.
    """
    x = jnp.clip(x, -1.0, 1.0)
    return x / jnp.reshape(_root_mean_square(x) + 1e-5, (-1, *(1 for _ in x.shape[1:])))


def _root_mean_square(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=tuple(range(1, x.ndim))))


def put_together(channels: Sequence[jax.Array]) -> jax.Array:
    """Channels [c, ...] as one array [C, ...], clipped to [-1, 1]: features but for their scale."""
    return jnp.clip(jnp.concatenate(channels), -1.0, 1.0)


def finish(large: LargeFeatures) -> jax.Array:
    """The features of a large tensor, [*leaf.shape, 8]."""
    x = jnp.moveaxis(put_together(large.channels), 0, -1)
    return x * jnp.broadcast_to(large.scale, x.shape)


def weight_features(params: PyTree, grads: PyTree, momenta: PyTree, count: jax.Array) -> WeightFeatures:
    """Features of all weights.

    Args:
      params: pytree of [...], any float dtype.
      grads: pytree of the same structure and shapes.
      momenta: pytree of the same structure, leaves [6, ...] float32.
      count: inner steps done, int32 [].
    """
    weights, large = {}, {}
    for (path, w), (_, g), (_, m) in zip(named_leaves(params), named_leaves(grads), named_leaves(momenta), strict=True):
        channels = w[None].astype(jnp.float32), g[None].astype(jnp.float32), m
        if is_large(w.shape):
            root_mean_squares = [_root_mean_square(jnp.clip(x, -1.0, 1.0)) for x in channels]
            large[path] = LargeFeatures(channels, 1 / (jnp.concatenate(root_mean_squares) + 1e-5))
        else:
            weights[path] = jnp.moveaxis(clip_and_normalize(jnp.concatenate(channels)), 0, -1)
    return WeightFeatures(weights, time_features(count), large)
