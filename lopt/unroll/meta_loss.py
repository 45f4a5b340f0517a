"""A window's share of the meta-loss of its inner training.

Shares are scaled by the number W of windows, so that their mean over the windows of an inner training is the meta-loss:

    final   the loss of step T            mean   1/T sum_t loss_t        last   the mean of the last n steps, or of the last part
    min     the smallest loss: each window's share is W times what it lowers the smallest loss so far by
"""

import jax
import jax.numpy as jnp

from lopt.unroll.clock import Clock
from lopt.unroll.config import UnrollConfig

NOTHING_YET = jnp.inf  # the smallest loss before the first


def share(config: UnrollConfig, losses: jax.Array, clock: Clock, best: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The share of a window, and the smallest loss of the inner training so far.

    Args:
      config: says which meta-loss.
      losses: [K] of the window, finite.
      clock: before the window.
      best: smallest loss of the windows before, `NOTHING_YET` for the first, [].
    """
    smallest = jnp.minimum(best, jnp.min(losses))
    if config.meta_loss == "mean":
        return jnp.mean(losses), smallest
    windows = (clock.horizon // losses.shape[0]).astype(jnp.float32)
    if config.meta_loss == "min":
        return windows * (smallest - jnp.where(jnp.isinf(best), 0.0, best)), smallest
    count = jnp.minimum(_counted(config, clock), clock.horizon)
    steps = clock.step + jnp.arange(losses.shape[0], dtype=jnp.int32)
    counted = jnp.where(steps >= clock.horizon - count, losses, 0.0)
    return jnp.sum(counted) * windows / count.astype(jnp.float32), smallest


def _counted(config: UnrollConfig, clock: Clock) -> int | jax.Array:
    """Steps at the end whose mean is the meta-loss."""
    if config.meta_loss == "final":
        return 1
    if config.last_part is None:
        return config.last or 100
    return jnp.maximum(jnp.round(config.last_part * clock.horizon.astype(jnp.float32)).astype(jnp.int32), 1)
