"""Generalized Persistent Evolution Strategies: from fresh noise in every window (PES) to one noise for a whole training (NRES).

Li, Harrison, Sohl-Dickstein, Smith, Metz, "Variance-Reduced Gradient Estimation via Noise-Reuse in Online Evolution Strategies"
(NeurIPS 2023, arXiv 2304.12180), GPES_K, with antithetic pairs. Particle i keeps two inner trainings, one under theta + eps, one under
theta - eps, draws a fresh eps ~ N(0, sigma^2 I) after every `reuse` inner steps, and keeps the sum xi of those drawn so far:

    g = 1/P sum_i  xi_i (L_i^+ - L_i^-) / (2 sigma^2),        xi_i = sum of the different eps_i since the training started.

The sum, not the newest eps, is what makes it unbiased: a window's loss depends on the perturbations of all windows before it. Each
smooths the meta-loss in its own way: over one perturbation per `reuse` steps.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh

from lopt.estimators.base import Estimator
from lopt.estimators.evolution import SIGNS, EvolutionConfig, draw, es_step, run_members, same_start
from lopt.estimators.particles import (
    first_of,
    init_particles,
    is_batched,
    mesh_for,
    statistics,
    step_particles,
)
from lopt.symmetry.spec import PyTree
from lopt.task.base import Datasets
from lopt.unroll import Clock, Training, Unroll, UnrollConfig, advance, first_clock


class Particle(NamedTuple):
    """The members of a particle; the estimator's state stacks P of them along a leading axis.

    Attributes:
      members: inner trainings, leaves [2, ...]: under theta + eps, under theta - eps.
      epsilon: the perturbation in force, [D] float32, D meta-parameters.
      accumulator: xi, [D] float32.
      clock: shared by the members.
    """

    members: Training
    epsilon: jax.Array
    accumulator: jax.Array
    clock: Clock


@dataclasses.dataclass(frozen=True)
class GPESConfig(EvolutionConfig):
    """Between PES and NRES: the noise is kept for `reuse` inner steps, and that of the steps before is remembered; without bias."""

    reuse: int | None = None
    """Inner steps that share a perturbation, a multiple of the truncation; None: all of an inner training."""

    def check(self, unroll: UnrollConfig) -> None:
        if self.reuse is not None and (self.reuse < 1 or self.reuse % unroll.truncation):
            raise ValueError(f"reuse must be a positive multiple of truncation={unroll.truncation}, or None, got {self.reuse}")

    def make(self, unroll: Unroll, mesh: Mesh | None = None) -> Estimator:
        return gpes(self, self.reuse, unroll, mesh)


def gpes(config: EvolutionConfig, reuse: int | None, unroll: Unroll, mesh: Mesh | None = None) -> Estimator:
    """The GPES estimator of the meta-gradient of inner trainings, its particles sharded over `mesh`.

    Args:
      config: number of particles, sigma.
      reuse: inner steps that share a perturbation; None for all.
      unroll: the inner trainings; of a family, each particle draws a task whenever it starts.
      mesh: a mesh with the axis `particles`, whose size divides the number of particles; None: of as many devices as do.

    Returns:
      An `Estimator`, whose info is that of `particles.summarize` and `evolution.es_gradient`.

    Raises:
      ValueError: if the mesh does not divide the particles, or `reuse` is no multiple of the truncation.
    """
    config.check(unroll.config)
    mesh = mesh_for(config.particles, mesh)
    batched = is_batched(config.batched, mesh)
    in_every_window = reuse == unroll.config.truncation

    def start(key: jax.Array, theta: PyTree) -> Training:
        return same_start(unroll.start(key, theta))

    def init(key: jax.Array, theta: PyTree) -> Particle:
        nothing = jnp.zeros(ravel_pytree(theta)[0].size)

        def init_particle(key: jax.Array, index: jax.Array) -> Particle:
            clock = first_clock(unroll.config, jax.random.fold_in(key, 0), index, config.particles)
            return Particle(start(key, theta), nothing, nothing, clock)

        return init_particles(config.particles, key, init_particle)

    def step_particle(key: jax.Array, theta: PyTree, datasets: Datasets, particle: Particle):
        noise_key, window_key, start_key = jax.random.split(key, 3)
        clock, members = particle.clock, particle.members
        epsilon = draw(config, noise_key, theta)
        accumulator = particle.accumulator + epsilon
        if not in_every_window:
            renew = clock.step == 0 if reuse is None else clock.step % reuse == 0
            epsilon = jnp.where(renew, epsilon, particle.epsilon)
            accumulator = jnp.where(renew, accumulator, particle.accumulator)
        window = unroll.window(window_key, datasets, first_of(members.inner.variant))
        members, losses = run_members(batched, unroll, theta, epsilon, members, window, clock)

        diverged = jnp.any(losses.nonfinite > 0)
        clock, restart = advance(unroll.config, jax.random.fold_in(start_key, 0), clock, diverged)
        members = jax.lax.cond(restart, lambda _: start(start_key, theta), lambda members: members, members)
        after = Particle(members, epsilon, jnp.where(restart, 0.0, accumulator), clock)
        return after, accumulator, losses.meta_loss, statistics(losses, restart, diverged)

    step = es_step(config, step_particles(config.particles, mesh, batched, step_particle))
    inner_steps = len(SIGNS) * config.particles * unroll.config.truncation
    return Estimator(init, step, inner_steps, unroll.config.windows)
