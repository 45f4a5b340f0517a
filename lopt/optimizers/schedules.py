"""Learned schedules: a factor of the step size that depends on the time and on how much of the training is left."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from lopt.features.base import Context
from lopt.features.time import FRACTIONS, TIME_SCALES, fraction_features, time_features
from lopt.symmetry.spec import PyTree

Shape = Literal["constant", "cosine", "warmup_cosine"]
WARMUP = 0.1  # of a training


def shape_factor(shape: Shape, context: Context, who: str) -> jax.Array:
    """A schedule by hand, in units of its largest value: [], 1 for `constant`; the others fall to zero at num_steps."""
    if shape == "constant":
        return jnp.float32(1)
    done = context.fraction_done(who)
    warmup = WARMUP if shape == "warmup_cosine" else 0.0
    fall = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip((done - warmup) / (1 - warmup), 0.0, 1.0)))
    if not warmup:
        return fall
    first = context.count.astype(jnp.float32) + 1
    assert context.num_steps is not None
    return jnp.minimum(1.0, first / jnp.maximum(warmup * context.num_steps.astype(jnp.float32), 1.0)) * fall


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """A learned schedule of the step size: a schedule by hand times a learned function of the time.

    s(t) = base(t) exp(3 w . x(t)): x are features of the time, w is learned and starts at zero, where s is the base.
    """

    base: Shape = "constant"
    """What is learned from: a constant, or half a cosine down to zero, after a rise or not. The latter two need num_steps."""
    time: bool = True
    """w sees the time, tanh(t / s - 1) for 11 scales s."""
    fraction: bool = False
    """w sees the part of the training that is done, tanh(10 (r - c)) for 11 fractions c; needs num_steps."""

    @property
    def needs_num_steps(self) -> bool:
        """Whether the schedule must know how long the training is."""
        return self.fraction or self.base != "constant"

    def init(self) -> PyTree:
        """Its part of theta: w."""
        size = len(TIME_SCALES) * self.time + len(FRACTIONS) * self.fraction
        return {"w": jnp.zeros(size, jnp.float32)} if size else {}

    def factor(self, theta: PyTree, context: Context, who: str) -> jax.Array:
        """s at a step, []; positive."""
        s = shape_factor(self.base, context, who)
        seen = [time_features(context.count)] if self.time else []
        seen += [fraction_features(context.fraction_done(who))] if self.fraction else []
        return s * jnp.exp(3 * theta["w"] @ jnp.concatenate(seen)) if seen else s
