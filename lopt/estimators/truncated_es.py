"""Truncated Evolution Strategies: every window by itself, with the weights at its beginning taken as given.

The baseline of Vicol, Metz, Sohl-Dickstein (ICML 2021), section 3. A particle keeps one inner training, under theta itself. In each
window its members start from there, under theta + eps and theta - eps with a fresh eps ~ N(0, sigma^2 I):

    g = 1/P sum_i  eps_i (L_i^+ - L_i^-) / (2 sigma^2).

Biased: that theta also made the weights at the window's beginning is left out, and with a `final` meta-loss all windows but the last
give nothing. Of low variance, and blind to what pays off only later.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lopt.estimators.base import Estimator
from lopt.estimators.evolution import SIGNS, EvolutionConfig, draw, es_step, run_members, same_start
from lopt.estimators.particles import (
    Single,
    go_on,
    init_singles,
    is_batched,
    mesh_for,
    statistics,
    step_particles,
)
from lopt.symmetry.spec import PyTree
from lopt.task.base import Datasets
from lopt.unroll import Unroll


@dataclasses.dataclass(frozen=True)
class TruncatedESConfig(EvolutionConfig):
    """Evolution strategies on one window at a time, which forget what theta did before: biased, for comparison."""

    def make(self, unroll: Unroll, mesh: Mesh | None = None) -> Estimator:
        return truncated_es(self, unroll, mesh)


def truncated_es(config: TruncatedESConfig, unroll: Unroll, mesh: Mesh | None = None) -> Estimator:
    """The truncated-ES estimator; arguments, info and errors as those of `lopt.estimators.gpes.gpes`."""
    mesh = mesh_for(config.particles, mesh)
    batched = is_batched(config.batched, mesh)

    def init(key: jax.Array, theta: PyTree) -> Single:
        return init_singles(config.particles, unroll, key, theta)

    def step_particle(key: jax.Array, theta: PyTree, datasets: Datasets, particle: Single):
        noise_key, window_key, start_key = jax.random.split(key, 3)
        training, clock = particle
        epsilon = draw(config, noise_key, theta)
        window = unroll.window(window_key, datasets, training.inner.variant)
        _, losses = run_members(batched, unroll, theta, epsilon, same_start(training), window, clock)
        training, carried = unroll.run(theta, training, window, clock)

        diverged = jnp.any(losses.nonfinite > 0) | (carried.nonfinite > 0)
        after, restart = go_on(unroll, start_key, theta, Single(training, clock), diverged)
        return after, epsilon, losses.meta_loss, statistics(losses, restart, diverged)

    step = es_step(config, step_particles(config.particles, mesh, batched, step_particle))
    inner_steps = (len(SIGNS) + 1) * config.particles * unroll.config.truncation
    return Estimator(init, step, inner_steps, unroll.config.windows)
