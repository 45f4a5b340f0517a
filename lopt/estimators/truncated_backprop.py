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

from lopt.estimators.base import Estimator, EstimatorConfig
from lopt.estimators.particles import Single, go_on, init_singles, is_batched, mesh_for, statistics, step_particles, summarize
from lopt.symmetry.spec import PyTree
from lopt.task.base import Datasets
from lopt.unroll import Unroll


@dataclasses.dataclass(frozen=True)
class TruncatedBackpropConfig(EstimatorConfig):
    """Backpropagation through one window at a time, which forgets what theta did before: biased, for comparison."""

    def make(self, unroll: Unroll, mesh: Mesh | None = None) -> Estimator:
        return truncated_backprop(self, unroll, mesh)


def truncated_backprop(config: TruncatedBackpropConfig, unroll: Unroll, mesh: Mesh | None = None) -> Estimator:
    """The estimator; arguments and errors as those of `lopt.estimators.gpes.gpes`, its info that of `particles.summarize`."""
    mesh = mesh_for(config.particles, mesh)
    batched = is_batched(config.batched, mesh)

    def init(key: jax.Array, theta: PyTree) -> Single:
        return init_singles(config.particles, unroll, key, theta)

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
        after, restart = go_on(unroll, start_key, theta, Single(training, clock), diverged)
        # A diverged window carries no gradient; it is counted, and its inner training starts anew.
        gradient = jnp.where(diverged, 0.0, gradient)
        return after, gradient, statistics(losses, restart, diverged)

    step_all = step_particles(config.particles, mesh, batched, step_particle)

    def step(key: jax.Array, theta: PyTree, datasets: Datasets, state: Single):
        state, gradients, stats = step_all(key, theta, datasets, state)
        return ravel_pytree(theta)[1](jnp.mean(gradients, axis=0)), state, summarize(stats)

    return Estimator(init, step, config.particles * unroll.config.truncation, unroll.config.windows)
