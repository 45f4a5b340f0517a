"""Scalars of theta in forms that cannot leave their range, whatever evolution strategies add to them.

A tenth of a logarithm: a perturbation by sigma = 0.01 changes a step size by a tenth of itself, as it should.
"""

import math

import jax
import jax.numpy as jnp


def positive(value: float, name: str) -> jax.Array:
    """A positive number as theta has it: log(value) / 10.

    Raises:
      ValueError: naming the number that is not positive.
    """
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")
    return jnp.float32(math.log(value) / 10)


def read_positive(scalar: jax.Array) -> jax.Array:
    """exp(10 a), never 0 nor infinite: the number that `positive` was given.

    Example:
      >>> [float(read_positive(jnp.float32(scalar))) > 0 for scalar in (-99.0, 0.0)], bool(jnp.isfinite(read_positive(jnp.float32(99.0))))
      ([True, True], True)
    """
    return jnp.exp(jnp.clip(10 * scalar, -80.0, 80.0))


def decay(value: float, name: str) -> jax.Array:
    """A decay in [0, 1) as theta has it: log(1 - value) / 10.

    Raises:
      ValueError: naming the number that is outside [0, 1).
    """
    if not 0 <= value < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {value}")
    return jnp.float32(math.log1p(-value) / 10)


def read_decay(scalar: jax.Array) -> jax.Array:
    """1 - exp(10 b), never below 0 nor at 1: the decay that `decay` was given.

    Example:
      >>> [round(float(read_decay(decay(0.99, "g") + shift)), 3) for shift in (-0.2, 0.0, 0.2, 9.0)]
      [0.999, 0.99, 0.926, 0.0]
    """
    return jnp.clip(-jnp.expm1(10 * scalar), 0.0, 1 - 2**-20)
