"""Truncated Evolution Strategies: every window by itself, with the weights at its beginning taken as given.

The baseline of Vicol, Metz, Sohl-Dickstein (ICML 2021), section 3. A particle keeps one inner training, under theta itself. In each
window its members start from there, under theta + eps and theta - eps with a fresh eps ~ N(0, sigma^2 I):

    g = 1/P sum_i  eps_i (L_i^+ - L_i^-) / (2 sigma^2).

Biased: that theta also made the weights at the window's beginning is left out, and with a `final` meta-loss all windows but the last
give nothing. Of low variance, and blind to what pays off only later.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lopt.estimators.base import Estimator
from lopt.estimators.evolution import EvolutionConfig, draw, es_gradient, member_windows, run_members, same_start
from lopt.estimators.particles import (
    check_mesh,
    first_of,
    init_particles,
    is_batched,
    statistics,
    step_particles,
    summarize,
)
from lopt.optimizer import LearnedOptimizer
from lopt.symmetry.spec import PyTree
from lopt.task import Datasets, Problem
from lopt.unroll import Clock, Training, advance, first_clock, make_unroll


class Particle(NamedTuple):
    """One inner training, under theta.

    Attributes:
      training: where it stands.
      clock: its own.
    """

    training: Training
    clock: Clock


@dataclasses.dataclass(frozen=True)
class TruncatedESConfig(EvolutionConfig):
    """Truncated evolution strategies with antithetic pairs; biased, for comparison."""

    def make(self, problem: Problem, optimizer: LearnedOptimizer, mesh: Mesh) -> Estimator:
        return truncated_es(self, problem, optimizer, mesh)


def truncated_es(config: TruncatedESConfig, problem: Problem, optimizer: LearnedOptimizer, mesh: Mesh) -> Estimator:
    """The truncated-ES estimator; arguments, info and errors as those of `lopt.estimators.gpes.gpes`."""
    check_mesh(config.particles, mesh)
    unroll, batched = make_unroll(config.unroll, problem, optimizer), is_batched(config.batched, mesh)

    def init(key: jax.Array, theta: PyTree) -> Particle:
        def init_particle(key: jax.Array, index: jax.Array) -> Particle:
            clock = first_clock(config.unroll, jax.random.fold_in(key, 0), index, config.particles)
            return Particle(unroll.start(key, theta), clock)

        return init_particles(config.particles, key, init_particle)

    def step_particle(key: jax.Array, theta: PyTree, datasets: Datasets, particle: Particle):
        noise_key, window_key, start_key = jax.random.split(key, 3)
        training, clock = particle
        epsilon = draw(config, noise_key, theta)
        windows = member_windows(config, unroll, window_key, datasets, training.inner.variant)
        _, losses = run_members(config, batched, unroll, theta, epsilon, same_start(config, training), windows, clock)
        window = windows if config.share_data else first_of(windows)
        training, carried = unroll.run(theta, training, window, clock)

        diverged = jnp.any(losses.nonfinite > 0) | (carried.nonfinite > 0)
        clock, restart = advance(config.unroll, jax.random.fold_in(start_key, 0), clock, diverged)
        training = jax.lax.cond(restart, lambda _: unroll.start(start_key, theta), lambda training: training, training)
        return Particle(training, clock), epsilon, losses.meta_loss, statistics(losses, restart, diverged)

    step_all = step_particles(config.particles, mesh, batched, step_particle)

    def step(key: jax.Array, theta: PyTree, datasets: Datasets, state: Particle):
        state, directions, losses, stats = step_all(key, theta, datasets, state)
        gradient, info = es_gradient(config, theta, directions, losses)
        return gradient, state, summarize(stats) | info

    inner_steps = (len(config.signs) + 1) * config.particles * config.unroll.truncation
    return Estimator(init, step, inner_steps, config.unroll.windows)
