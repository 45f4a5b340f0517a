"""When an inner training ends and the next begins.

An inner training runs for its horizon and then starts from a fresh initialisation. It is cut into windows of K steps; an estimator sees
one window of every particle at each outer step. Horizons are whole numbers of windows, so that a reset falls between two windows.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lopt.unroll.config import UnrollConfig


class Clock(NamedTuple):
    """Where an inner training stands.

    Attributes:
      step: inner steps done, int32 [].
      horizon: inner steps at which it ends, int32 []; shorter than T for the staggered first ones.
      age: outer steps that this particle has seen since meta-training began, over all its inner trainings, int32 [].
    """

    step: jax.Array
    horizon: jax.Array
    age: jax.Array


def draw_windows(config: UnrollConfig, key: jax.Array, age: jax.Array) -> jax.Array:
    """Windows of an inner training that starts after `age` outer steps, int32 []."""
    shortest, longest = config.shortest // config.truncation, config.windows
    if shortest == longest:
        return jnp.int32(longest)
    if config.horizons == "log_uniform":
        # Rounded down from a range that ends just above the longest: every number of windows gets its share.
        drawn = jnp.exp(jax.random.uniform(key, (), minval=math.log(shortest), maxval=math.log(longest + 1)))
        return jnp.clip(drawn.astype(jnp.int32), shortest, longest)
    progress = jnp.minimum(age.astype(jnp.float32) / (config.curriculum_steps or 1000), 1.0)
    return jnp.round(shortest * (longest / shortest) ** progress).astype(jnp.int32)


def first_clock(config: UnrollConfig, key: jax.Array, particle: jax.Array, particles: int) -> Clock:
    """The clock of a particle's first inner training: with `stagger`, the P particles' resets are spread evenly over the windows."""
    windows = draw_windows(config, key, jnp.int32(0))
    if config.stagger is not False:
        windows = windows - (particle * windows) // particles
    return Clock(jnp.int32(0), (windows * config.truncation).astype(jnp.int32), jnp.int32(0))


def advance(config: UnrollConfig, key: jax.Array, clock: Clock, diverged: jax.Array) -> tuple[Clock, jax.Array]:
    """The clock after a window, and whether the particle starts anew: at its horizon, or because it diverged."""
    step, age = clock.step + config.truncation, clock.age + 1
    restart = (step >= clock.horizon) | diverged
    horizon = draw_windows(config, key, age) * config.truncation
    return Clock(jnp.where(restart, 0, step), jnp.where(restart, horizon, clock.horizon), age), restart
