"""Truncated backpropagation: the exact gradient of every window's meta-loss, with the weights at its beginning taken as given.

    g = 1/P sum_i  d L_i(theta; w_i) / d theta,      w_i held fixed.

No sampling noise beyond that of batches and initialisations, and the bias of truncation; through long windows the gradient of a chaotic
training explodes (Metz et al., "Understanding and correcting pathologies in the training of learned optimizers", ICML 2019).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh

from lopt.config import operational
from lopt.estimators.base import Estimator, EstimatorConfig
from lopt.estimators.particles import Single, check_mesh, go_on, init_singles, is_batched, statistics, step_particles, summarize
from lopt.optimizers.momentum import LearnedOptimizer
from lopt.symmetry.spec import PyTree
from lopt.task.base import Datasets, Problem
from lopt.unroll import UnrollConfig, make_unroll


@dataclasses.dataclass(frozen=True)
class TruncatedBackpropConfig(EstimatorConfig):
    """Backpropagation through one window of inner training."""

    unroll: UnrollConfig = UnrollConfig()
    """Horizon, truncation, meta-loss."""
    batched: bool | None = operational(None)
    """Compute a device's particles as one batch (True) or one after another (False); None: batched except on CPU."""

    def __post_init__(self) -> None:
        if self.particles < 1:
            raise ValueError(f"particles must be at least 1, got {self.particles}")

    def make(self, problem: Problem, optimizer: LearnedOptimizer, mesh: Mesh) -> Estimator:
        return truncated_backprop(self, problem, optimizer, mesh)


def truncated_backprop(config: TruncatedBackpropConfig, problem: Problem, optimizer: LearnedOptimizer, mesh: Mesh) -> Estimator:
    """The estimator; arguments and errors as those of `lopt.estimators.gpes.gpes`, its info that of `particles.summarize`."""
    check_mesh(config.particles, mesh)
    unroll, batched = make_unroll(config.unroll, problem, optimizer), is_batched(config.batched, mesh)

    def init(key: jax.Array, theta: PyTree) -> Single:
        return init_singles(config.particles, config.unroll, unroll, key, theta)

    def step_particle(key: jax.Array, theta: PyTree, datasets: Datasets, particle: Single):
        window_key, start_key = jax.random.split(key)
        training, clock = particle
        window = unroll.window(window_key, datasets, training.inner.variant)

        def meta_loss(theta: PyTree):
            after, losses = unroll.run(theta, training, window, clock)
            return losses.meta_loss, (after, losses)

        gradient, (training, losses) = jax.grad(meta_loss, has_aux=True)(theta)
        gradient = ravel_pytree(gradient)[0]
        diverged = (losses.nonfinite > 0) | ~jnp.all(jnp.isfinite(gradient))
        after, restart = go_on(config.unroll, unroll, start_key, theta, Single(training, clock), diverged)
        # A diverged window carries no gradient; it is counted, and its inner training starts anew.
        gradient = jnp.where(diverged, 0.0, gradient)
        return after, gradient, statistics(losses, restart, diverged)

    step_all = step_particles(config.particles, mesh, batched, step_particle)

    def step(key: jax.Array, theta: PyTree, datasets: Datasets, state: Single):
        state, gradients, stats = step_all(key, theta, datasets, state)
        return ravel_pytree(theta)[1](jnp.mean(gradients, axis=0)), state, summarize(stats)

    return Estimator(init, step, config.particles * config.unroll.truncation, config.unroll.windows)
