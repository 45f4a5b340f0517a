"""Full Evolution Strategies: whole inner trainings in every outer step, each under one perturbation of theta.

    g = 1/P sum_i  eps_i (L(theta + eps_i) - L(theta - eps_i)) / (2 sigma^2),      eps_i ~ N(0, sigma^2 I),

L the meta-loss of an inner training from initialisation to horizon: without bias, at T / K times the cost of a window a step.
Salimans et al., "Evolution Strategies as a Scalable Alternative to Reinforcement Learning" (2017); Metz et al., "Understanding and
correcting pathologies in the training of learned optimizers" (ICML 2019).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lopt.estimators.base import Estimator
from lopt.estimators.evolution import SIGNS, EvolutionConfig, draw, es_step, run_members, same_start
from lopt.estimators.particles import (
    check_whole,
    first_of,
    is_batched,
    mesh_for,
    statistics,
    step_particles,
)
from lopt.symmetry.spec import PyTree
from lopt.task.base import Datasets
from lopt.unroll import Clock, Unroll, UnrollConfig, WindowLosses
from lopt.unroll.clock import draw_windows


@dataclasses.dataclass(frozen=True)
class FullESConfig(EvolutionConfig):
    """Evolution strategies over whole inner trainings, all of one in every outer step: without bias, and slow."""

    def check(self, unroll: UnrollConfig) -> None:
        check_whole(unroll)

    def make(self, unroll: Unroll, mesh: Mesh | None = None) -> Estimator:
        return full_es(self, unroll, mesh)


def full_es(config: FullESConfig, unroll: Unroll, mesh: Mesh | None = None) -> Estimator:
    """The full-ES estimator; arguments, info and errors as those of `lopt.estimators.gpes.gpes`.

    Its state is the number of outer steps done, for horizons that grow. `inner_steps` is that of trainings of the longest horizon.
    """
    config.check(unroll.config)
    mesh = mesh_for(config.particles, mesh)
    batched = is_batched(config.batched, mesh)
    steps = unroll.config.truncation

    def init(key: jax.Array, theta: PyTree) -> jax.Array:
        del key, theta
        return jnp.zeros(config.particles, jnp.int32)

    def step_particle(key: jax.Array, theta: PyTree, datasets: Datasets, age: jax.Array):
        noise_key, window_key, start_key = jax.random.split(key, 3)
        epsilon = draw(config, noise_key, theta)
        windows = draw_windows(unroll.config, jax.random.fold_in(start_key, 0), age)
        members = same_start(unroll.start(start_key, theta))
        number, count = (jnp.zeros(len(SIGNS), dtype) for dtype in (jnp.float32, jnp.int32))
        zero = WindowLosses(meta_loss=number, mean=number, capped=count, nonfinite=count, uncapped=count)

        def run_window(index: jax.Array, carry):
            members, total, _ = carry
            clock = Clock(index * steps, windows * steps, age)
            seen = unroll.window(jax.random.fold_in(window_key, index), datasets, first_of(members.inner.variant))
            members, losses = run_members(batched, unroll, theta, epsilon, members, seen, clock)
            return members, jax.tree.map(jnp.add, total, losses), losses

        _, total, last = jax.lax.fori_loop(0, windows, run_window, (members, zero, zero))
        diverged = jnp.any(total.nonfinite > 0)
        stats = statistics(total._replace(mean=last.mean), jnp.bool(True), diverged)
        return age + 1, epsilon, total.meta_loss / windows.astype(jnp.float32), stats

    step = es_step(config, step_particles(config.particles, mesh, batched, step_particle))
    return Estimator(init, step, len(SIGNS) * config.particles * unroll.config.horizon)
