"""Full backpropagation: the exact gradient of the meta-loss of whole inner trainings, with rematerialisation.

    g = 1/P sum_i  d L_i(theta) / d theta,      L_i from initialisation to horizon.

Each window is computed a second time on the way back (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016): the memory is
that of T / K states and of the K steps of one window, not of T steps. Exact, and as noisy as the training is chaotic.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh

from lopt.estimators.base import Estimator
from lopt.estimators.particles import check_whole, is_batched, mesh_for, statistics, step_particles, summarize
from lopt.estimators.truncated_backprop import TruncatedBackpropConfig
from lopt.symmetry.spec import PyTree
from lopt.task.base import Datasets
from lopt.unroll import Clock, Training, Unroll, UnrollConfig


@dataclasses.dataclass(frozen=True)
class FullBackpropConfig(TruncatedBackpropConfig):
    """Backpropagation through whole inner trainings, all of one in every outer step: the exact gradient, for short ones."""

    def check(self, unroll: UnrollConfig) -> None:
        check_whole(unroll)
        if unroll.horizons != "constant":
            raise ValueError(f"full backpropagation unrolls a constant horizon, not horizons={unroll.horizons!r}")

    def make(self, unroll: Unroll, mesh: Mesh | None = None) -> Estimator:
        return full_backprop(self, unroll, mesh)


def full_backprop(config: FullBackpropConfig, unroll: Unroll, mesh: Mesh | None = None) -> Estimator:
    """The estimator; arguments and errors as those of `lopt.estimators.gpes.gpes`, its info that of `particles.summarize`.

    It keeps no state from one outer step to the next but the number of those done.
    """
    config.check(unroll.config)
    mesh = mesh_for(config.particles, mesh)
    batched = is_batched(config.batched, mesh)
    steps, horizon = unroll.config.truncation, jnp.int32(unroll.config.horizon)

    def init(key: jax.Array, theta: PyTree) -> jax.Array:
        del key, theta
        return jnp.zeros(config.particles, jnp.int32)

    def step_particle(key: jax.Array, theta: PyTree, datasets: Datasets, age: jax.Array):
        window_key, start_key = jax.random.split(key)

        def meta_loss(theta: PyTree):
            @jax.checkpoint
            def run_window(training: Training, index: jax.Array):
                window = unroll.window(jax.random.fold_in(window_key, index), datasets, training.inner.variant)
                return unroll.run(theta, training, window, Clock(index * steps, horizon, age))

            windows = jnp.arange(unroll.config.windows, dtype=jnp.int32)
            _, losses = jax.lax.scan(run_window, unroll.start(start_key, theta), windows)
            return jnp.mean(losses.meta_loss), losses

        gradient, losses = jax.grad(meta_loss, has_aux=True)(theta)
        gradient = ravel_pytree(gradient)[0]
        diverged = jnp.any(losses.nonfinite > 0) | ~jnp.all(jnp.isfinite(gradient))
        stats = statistics(losses._replace(mean=losses.mean[-1]), jnp.bool(True), diverged)
        return age + 1, jnp.where(diverged, 0.0, gradient), stats

    step_all = step_particles(config.particles, mesh, batched, step_particle)

    def step(key: jax.Array, theta: PyTree, datasets: Datasets, state: jax.Array):
        state, gradients, stats = step_all(key, theta, datasets, state)
        return ravel_pytree(theta)[1](jnp.mean(gradients, axis=0)), state, summarize(stats)

    return Estimator(init, step, config.particles * unroll.config.horizon)
