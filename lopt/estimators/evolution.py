"""What the evolution-strategies estimators share: perturbations of theta, antithetic pairs, and how losses become a gradient.

The two *members* of a particle train under theta + eps and theta - eps, on the same batches and with the same keys, so that their losses
differ by theta alone. With these losses L_+ and L_- and a direction d, which is a sum of perturbations, a particle's estimate is

    d (L_+ - L_-) / (2 sigma^2).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from lopt.estimators.base import EstimatorConfig
from lopt.estimators.particles import map_batched, summarize
from lopt.symmetry.spec import PyTree, is_under, named_leaves, unknown_prefixes
from lopt.task.base import Datasets
from lopt.unroll import Clock, Training, Unroll, Window, WindowLosses

SIGNS = (1.0, -1.0)  # of the perturbation of the members of a particle


@dataclasses.dataclass(frozen=True)
class EvolutionConfig(EstimatorConfig):
    """Settings of every evolution-strategies estimator."""

    sigma: float = 0.01
    """Standard deviation of theta's perturbations (the paper: 0.01)."""
    sigmas: tuple[tuple[str, float], ...] = ()
    """Other sigmas for parts of theta, by the beginning of their path, such as ('alpha', 0.001) or ('network/last', 0.03); the longest
    that fits counts. What has 0 is not perturbed and stays as it is."""

    GONE: ClassVar[Mapping[str, Any]] = MappingProxyType({"antithetic": True, "share_data": True, "centered_ranks": False})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sigma > 0:
            raise ValueError(f"sigma must be positive, got {self.sigma}")
        for path, sigma in self.sigmas:
            if not 0 <= sigma < math.inf:
                raise ValueError(f"sigma of '{path}' must be positive, or 0 for what is not to be trained, got {sigma}")


def sigma_of(config: EvolutionConfig, theta: PyTree) -> jax.Array | float:
    """The standard deviation of every entry of the flattened theta, [D]; a number where it is the same for all.

    Raises:
      ValueError: if a path in `sigmas` begins no part of theta.
    """
    if not config.sigmas:
        return config.sigma
    unknown = unknown_prefixes((prefix for prefix, _ in config.sigmas), theta)
    if unknown:
        raise ValueError(f"sigmas are given for {unknown}, but theta has the parts {[path for path, _ in named_leaves(theta)]}")

    def sigma(path: str) -> float:
        fitting = [(len(prefix), value) for prefix, value in config.sigmas if is_under(path, prefix)]
        return max(fitting)[1] if fitting else config.sigma

    return jnp.concatenate([jnp.full(jnp.size(leaf), sigma(path), jnp.float32) for path, leaf in named_leaves(theta)])


def draw(config: EvolutionConfig, key: jax.Array, theta: PyTree) -> jax.Array:
    """A perturbation of theta, [D]."""
    center = ravel_pytree(theta)[0]
    return sigma_of(config, theta) * jax.random.normal(key, center.shape)


def run_members(
    batched: bool, unroll: Unroll, theta: PyTree, epsilon: jax.Array, members: Training, window: Window, clock: Clock
) -> tuple[Training, WindowLosses]:
    """A window of both members, leaves [2, ...]: the first under theta + epsilon, the second under theta - epsilon."""
    center, unravel = ravel_pytree(theta)
    return map_batched(
        batched,
        lambda sign, member: unroll.run(unravel(center + sign * epsilon), member, window, clock),
        jnp.asarray(SIGNS),
        members,
    )


def same_start(training: Training) -> Training:
    """Both members at the same point, leaves [2, ...]."""
    return jax.tree.map(lambda x: jnp.stack([x] * len(SIGNS)), training)


def es_gradient(
    config: EvolutionConfig, theta: PyTree, directions: jax.Array, losses: jax.Array
) -> tuple[PyTree, dict[str, jax.Array]]:
    """The gradient from the meta-losses of all members.

    Args:
      config: says how wide perturbations are.
      theta: as the gradient is to look.
      directions: [P, D], of the first member.
      losses: [P, 2].

    Returns:
      the gradient, and `delta_norm`: root mean square of what the directions are multiplied with, L_+ - L_-.
    """
    unravel = ravel_pytree(theta)[1]
    sigma = sigma_of(config, theta)
    delta = losses[:, 0] - losses[:, 1]
    # Without a cap the losses of a diverged pair carry no gradient; it is counted and starts anew.
    delta = jnp.where(jnp.isfinite(delta), delta, 0.0)
    if config.sigmas:
        width = jnp.where(sigma == 0, 1.0, sigma)  # directions are zero there, and so is the gradient
        gradients = directions * (delta / 2)[:, None] / jnp.square(width)[None]
    else:
        gradients = directions * (delta / (2 * sigma**2))[:, None]
    return unravel(jnp.mean(gradients, axis=0)), {"delta_norm": jnp.sqrt(jnp.mean(jnp.square(delta)))}


def es_step(config: EvolutionConfig, step_all: Callable[..., Any]) -> Callable[..., Any]:
    """The `step` of an `Estimator` from that of all its particles.

    Args:
      config: of the estimator.
      step_all: `step_all(key, theta, datasets, state) -> (state, directions [P, D], meta_losses [P, 2], statistics)`.
    """

    def step(key: jax.Array, theta: PyTree, datasets: Datasets, state: PyTree) -> tuple[PyTree, PyTree, dict[str, jax.Array]]:
        state, directions, losses, stats = step_all(key, theta, datasets, state)
        gradient, info = es_gradient(config, theta, directions, losses)
        return gradient, state, summarize(stats) | info

    return step
