"""What all weights share: the time, how much of the training is left, and how the loss has moved."""

import dataclasses

import jax
import jax.numpy as jnp

from lopt.features.base import Context, Kind
from lopt.symmetry.spec import PyTree

TIME_SCALES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5)
FRACTIONS = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.98)


def time_features(count: jax.Array) -> jax.Array:
    """tanh(t / s - 1) for every time scale s: [11]; `count` is the number of inner steps done, int32 []."""
    return jnp.tanh(count.astype(jnp.float32) / jnp.asarray(TIME_SCALES, jnp.float32) - jnp.float32(1))


def fraction_features(done: jax.Array) -> jax.Array:
    """tanh(10 (r - c)) for fractions c of a training: [11]; `done` is r, the part of it that is done, []."""
    return jnp.tanh(10 * (done - jnp.asarray(FRACTIONS, jnp.float32)))


@dataclasses.dataclass(frozen=True)
class Time(Kind):
    """tanh(t / s - 1), s in 1, 3, 10, 30, ..., 1e5."""

    def num_shared_channels(self) -> int:
        return len(TIME_SCALES)

    def shared(self, state: PyTree, context: Context) -> tuple[jax.Array, PyTree]:
        return time_features(context.count), state


@dataclasses.dataclass(frozen=True)
class FractionLeft(Kind):
    """tanh(10 (t / T - c)) for fractions c of the training: needs to know T."""

    def num_shared_channels(self) -> int:
        return len(FRACTIONS)

    def shared(self, state: PyTree, context: Context) -> tuple[jax.Array, PyTree]:
        return fraction_features(context.fraction_done("the feature 'fraction_left'")), state


@dataclasses.dataclass(frozen=True)
class LossTrend(Kind):
    """How the loss of this batch compares with its averages of the past: tanh(log(average) - log(loss)) for each decay.

    Needs the loss: `update(grads, state, params, value=loss)`. Losses are taken to be positive; what is below 1e-10 counts as that.
    """

    decays: tuple[float, ...] = (0.9, 0.99, 0.999)
    """Decays of the averages of the logarithm of the loss."""

    def num_shared_channels(self) -> int:
        return len(self.decays)

    def init_shared(self) -> PyTree:
        return jnp.zeros(len(self.decays), jnp.float32)

    def shared(self, state: PyTree, context: Context) -> tuple[jax.Array, PyTree]:
        if context.loss is None:
            raise ValueError("the feature 'loss_trend' sees the loss: call update(grads, state, params, value=loss)")
        decays = jnp.asarray(self.decays, jnp.float32)
        now = jnp.log(jnp.maximum(context.loss.astype(jnp.float32), 1e-10))
        after = decays * state + (1 - decays) * now
        average = after / (1 - decays ** (context.count.astype(jnp.float32) + 1))
        return jnp.tanh(average - now), after
