"""What the evolution-strategies estimators share: perturbations of theta, pairs, and how losses become a gradient.

A *member* of a particle trains under theta + s eps, with s = 1 and -1 in an antithetic pair. With the losses L_s and a direction d,
which is a sum of perturbations, a particle's estimate is

    d (L_1 - L_-1) / (2 sigma^2),     or     d (L - b) / sigma^2     without pairs, b the mean loss of the other particles.

Centred ranks put the place of a loss among all members' losses, from -1/2 to 1/2, for the loss itself: the gradient's direction is
then that of an expected rank, its length means nothing.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from lopt.estimators.base import EstimatorConfig
from lopt.estimators.particles import map_batched, summarize
from lopt.symmetry.spec import PyTree, is_under, named_leaves, unknown_prefixes
from lopt.task.base import Datasets
from lopt.unroll import Clock, Training, Unroll, Window, WindowLosses


@dataclasses.dataclass(frozen=True)
class EvolutionConfig(EstimatorConfig):
    """Settings of every evolution-strategies estimator."""

    sigma: float = 0.01
    """Standard deviation of theta's perturbations (the paper: 0.01)."""
    antithetic: bool = True
    """Two inner trainings a particle, under theta + eps and theta - eps (the paper); or one, under theta + eps."""
    share_data: bool = True
    """A pair sees the same batches and keys, so that its losses differ by theta alone; or each of its members draws its own."""
    centered_ranks: bool = False
    """Replace losses by their centred ranks among all members."""
    sigmas: tuple[tuple[str, float], ...] = ()
    """Other sigmas for parts of theta, by the beginning of their path, such as ('alpha', 0.001) or ('network/last', 0.03)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.antithetic and self.particles < 2:
            raise ValueError("without antithetic pairs a particle is compared with the others: particles must be at least 2")
        for name, sigma in (("sigma", self.sigma), *((f"sigma of '{path}'", sigma) for path, sigma in self.sigmas)):
            if not sigma > 0:
                raise ValueError(f"{name} must be positive, got {sigma}")

    @property
    def signs(self) -> tuple[float, ...]:
        """Of the members of a particle."""
        return (1.0, -1.0) if self.antithetic else (1.0,)


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


def member_windows(config: EvolutionConfig, unroll: Unroll, key: jax.Array, datasets: PyTree, variant: PyTree) -> Window:
    """What the members see: one window for all, or, with data of their own, leaves [M, ...]."""
    if config.share_data:
        return unroll.window(key, datasets, variant)
    windows = [unroll.window(jax.random.fold_in(key, member), datasets, variant) for member in range(len(config.signs))]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *windows)


def run_members(
    config: EvolutionConfig,
    batched: bool,
    unroll: Unroll,
    theta: PyTree,
    epsilon: jax.Array,
    members: Training,
    window: Window,
    clock: Clock,
) -> tuple[Training, WindowLosses]:
    """A window of every member, leaves [M, ...], member m under theta + s_m epsilon."""
    center, unravel = ravel_pytree(theta)
    signs = jnp.asarray(config.signs)
    if config.share_data:
        return map_batched(
            batched, lambda sign, member: unroll.run(unravel(center + sign * epsilon), member, window, clock), signs, members
        )
    return map_batched(
        batched,
        lambda sign, member, window: unroll.run(unravel(center + sign * epsilon), member, window, clock),
        signs,
        members,
        window,
    )


def same_start(config: EvolutionConfig, training: Training) -> Training:
    """All members at the same point, leaves [M, ...]."""
    return jax.tree.map(lambda x: jnp.stack([x] * len(config.signs)), training)


def es_gradient(
    config: EvolutionConfig, theta: PyTree, directions: jax.Array, losses: jax.Array
) -> tuple[PyTree, dict[str, jax.Array]]:
    """The gradient from the meta-losses of all members.

    Args:
      config: says how losses count.
      theta: as the gradient is to look.
      directions: [P, D], of the first member.
      losses: [P, M].

    Returns:
      the gradient, and `delta_norm`: root mean square of what the directions are multiplied with, L_1 - L_-1 or L - b.
    """
    unravel = ravel_pytree(theta)[1]
    sigma = sigma_of(config, theta)
    values = _centered_ranks(losses) if config.centered_ranks else losses
    if config.antithetic:
        delta, scale = values[:, 0] - values[:, 1], 2
    else:
        others = (jnp.sum(values) - values[:, 0]) / (values.size - 1)
        delta, scale = values[:, 0] - others, 1
    # Without a cap the losses of a diverged pair carry no gradient; it is counted and starts anew.
    delta = jnp.where(jnp.isfinite(delta), delta, 0.0)
    if config.sigmas:
        gradients = directions * (delta / scale)[:, None] / jnp.square(sigma)[None]
    else:
        gradients = directions * (delta / (scale * sigma**2))[:, None]
    return unravel(jnp.mean(gradients, axis=0)), {"delta_norm": jnp.sqrt(jnp.mean(jnp.square(delta)))}


def es_step(config: EvolutionConfig, step_all: Callable[..., Any]) -> Callable[..., Any]:
    """The `step` of an `Estimator` from that of all its particles.

    Args:
      config: of the estimator.
      step_all: `step_all(key, theta, datasets, state) -> (state, directions [P, D], meta_losses [P, M], statistics)`.
    """

    def step(key: jax.Array, theta: PyTree, datasets: Datasets, state: PyTree) -> tuple[PyTree, PyTree, dict[str, jax.Array]]:
        state, directions, losses, stats = step_all(key, theta, datasets, state)
        gradient, info = es_gradient(config, theta, directions, losses)
        return gradient, state, summarize(stats) | info

    return step


def _centered_ranks(losses: jax.Array) -> jax.Array:
    """Ranks from -1/2 to 1/2, equal losses sharing theirs; losses that are not finite rank as the largest."""
    flat = jnp.where(jnp.isfinite(losses), losses, jnp.inf).ravel()
    below = jnp.sum(flat[None] < flat[:, None], axis=1, dtype=jnp.float32)
    equal = jnp.sum(flat[None] == flat[:, None], axis=1, dtype=jnp.float32)
    ranks = below + (equal - 1) / 2
    return jnp.reshape(ranks / max(flat.size - 1, 1) - 0.5, losses.shape)
