"""Persistent Evolution Strategies: an unbiased meta-gradient from truncated unrolls.

Vicol, Metz, Sohl-Dickstein, "Unbiased Gradient Estimation in Unrolled Computation Graphs with Persistent Evolution Strategies"
(ICML 2021), equation 9 and Algorithm 2, with antithetic pairs. Particle i keeps two inner trainings, one under theta + eps, one under
theta - eps, and the sum xi of all perturbations since they started. With a fresh eps ~ N(0, sigma^2 I) in each window,

    g = 1/P sum_i  xi_i (L_i^+ - L_i^-) / (2 sigma^2),        xi_i = sum of eps_i over the windows so far.

The sum, not the newest eps, is what makes it unbiased: a window's loss depends on the perturbations of all windows before it.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec

from lopt.estimators.base import PARTICLES, Estimator, EstimatorConfig
from lopt.optimizer import LearnedOptimizer
from lopt.symmetry.spec import PyTree
from lopt.task import Datasets, Problem
from lopt.unroll import Clock, InnerState, UnrollConfig, advance, first_clock, make_unroll


class Particle(NamedTuple):
    """One antithetic pair; the estimator's state stacks P of them along a leading axis.

    Attributes:
      inner: both inner trainings, leaves [2, ...]: under theta + eps, under theta - eps.
      accumulator: xi, [D] float32, D meta-parameters.
      clock: shared by the pair.
    """

    inner: InnerState
    accumulator: jax.Array
    clock: Clock


@dataclasses.dataclass(frozen=True)
class PESConfig(EstimatorConfig):
    """Persistent evolution strategies with antithetic pairs."""

    sigma: float = 0.01
    """Standard deviation of theta's perturbations (the paper: 0.01)."""
    unroll: UnrollConfig = UnrollConfig()
    """Horizon, truncation, meta-loss."""
    batched: bool | None = None
    """Compute a device's particles as one batch (True) or one after another (False); None: batched except on CPU."""

    def __post_init__(self) -> None:
        if self.particles < 1:
            raise ValueError(f"particles must be at least 1, got {self.particles}")
        if not self.sigma > 0:
            raise ValueError(f"sigma must be positive, got {self.sigma}")

    def make(self, problem: Problem, optimizer: LearnedOptimizer, mesh: Mesh) -> Estimator:
        return pes(self, problem, optimizer, mesh)


def pes(config: PESConfig, problem: Problem, optimizer: LearnedOptimizer, mesh: Mesh) -> Estimator:
    """The PES estimator of the meta-gradient on `problem`, its particles sharded over `mesh`.

    Args:
      config: number of particles, sigma, horizon and truncation.
      problem: the inner problem: a task, or a family of which each pair draws a task whenever it starts.
      optimizer: whose theta is trained.
      mesh: a mesh with the axis `particles`, whose size divides the number of particles.

    Returns:
      An `Estimator`. Every particle draws its randomness from its own index, so results do not depend on the mesh beyond the order
      of floating-point sums. Its info has `meta_loss` (mean over particles of this window's capped losses), `final_loss` (mean
      loss of the last window of the inner trainings that ended here, NaN if none did), `finished`, `diverged` (particles reset
      because a loss was not finite), `all_diverged`, `capped` and `nonfinite` (inner steps), `delta_norm` (root mean square of L+ - L-).

    Raises:
      ValueError: if the mesh does not divide the particles.
    """
    if config.particles % mesh.shape[PARTICLES]:
        raise ValueError(f"{config.particles} particles cannot be split over {mesh.shape[PARTICLES]} devices evenly")
    unroll = make_unroll(config.unroll, problem, optimizer)
    batched = mesh.devices.flat[0].platform != "cpu" if config.batched is None else config.batched

    def map_particles(f, *args):
        """Over this device's particles: one after another keeps each in cache and lets `cond` skip, where a batch would not."""
        return jax.vmap(f)(*args) if batched else jax.lax.map(lambda xs: f(*xs), args)

    def start_pair(key: jax.Array, theta: PyTree) -> InnerState:
        return jax.tree.map(lambda x: jnp.stack([x, x]), unroll.start(key, theta))

    def init(key: jax.Array, theta: PyTree) -> Particle:
        size = ravel_pytree(theta)[0].size

        def init_particle(particle: jax.Array) -> Particle:
            inner = start_pair(jax.random.fold_in(key, particle), theta)
            return Particle(inner, jnp.zeros(size), first_clock(config.unroll, particle, config.particles))

        return jax.vmap(init_particle)(jnp.arange(config.particles))

    def step_particle(key: jax.Array, theta: PyTree, datasets: Datasets, particle: Particle):
        noise_key, window_key, start_key = jax.random.split(key, 3)
        center, unravel = ravel_pytree(theta)
        epsilon = config.sigma * jax.random.normal(noise_key, center.shape)
        window = unroll.window(window_key, datasets, jax.tree.map(lambda x: x[0], particle.inner.variant))  # one for the pair

        def run(member: tuple[jax.Array, InnerState]) -> tuple[InnerState, jax.Array]:
            sign, inner = member
            return unroll.run(unravel(center + sign * epsilon), inner, window)

        inner, losses = map_particles(lambda *member: run(member), jnp.asarray([1.0, -1.0]), particle.inner)
        loss = jax.vmap(unroll.losses, in_axes=(0, None))(losses, particle.clock)
        accumulator = particle.accumulator + epsilon
        delta = loss.meta_loss[0] - loss.meta_loss[1]
        # Without a cap the losses of a diverged pair carry no gradient; it is counted and starts anew.
        delta = jnp.where(jnp.isfinite(delta), delta, 0.0)
        gradient = accumulator * (delta / (2 * config.sigma**2))

        diverged = jnp.any(loss.nonfinite > 0)
        clock, restart = advance(config.unroll, particle.clock, diverged)
        inner = jax.lax.cond(restart, lambda _: start_pair(start_key, theta), lambda inner: inner, inner)
        accumulator = jnp.where(restart, jnp.zeros_like(accumulator), accumulator)
        statistics = {
            "loss": jnp.mean(loss.mean),
            "finished": restart & ~diverged,
            "diverged": diverged,
            "capped": jnp.sum(loss.capped),
            "nonfinite": jnp.sum(loss.nonfinite),
            "delta": delta,
        }
        return gradient, Particle(inner, accumulator, clock), statistics

    sharded, replicated = PartitionSpec(PARTICLES), PartitionSpec()

    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(sharded, replicated, replicated, sharded),
        out_specs=sharded,
        check_vma=False,
    )
    def step_shard(keys: jax.Array, theta: PyTree, datasets: Datasets, particles: Particle):
        return map_particles(lambda key, particle: step_particle(key, theta, datasets, particle), keys, particles)

    def step(key: jax.Array, theta: PyTree, datasets: Datasets, state: Particle):
        keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(config.particles))
        gradients, state, statistics = step_shard(keys, theta, datasets, state)
        gradient = ravel_pytree(theta)[1](jnp.mean(gradients, axis=0))
        finished = statistics["finished"]
        info = {
            "meta_loss": jnp.mean(statistics["loss"]),
            "final_loss": jnp.sum(jnp.where(finished, statistics["loss"], 0.0)) / jnp.sum(finished, dtype=jnp.float32),
            "finished": jnp.sum(finished, dtype=jnp.int32),
            "diverged": jnp.sum(statistics["diverged"], dtype=jnp.int32),
            "all_diverged": jnp.all(statistics["diverged"]),
            "capped": jnp.sum(statistics["capped"]),
            "nonfinite": jnp.sum(statistics["nonfinite"]),
            "delta_norm": jnp.sqrt(jnp.mean(jnp.square(statistics["delta"]))),
        }
        return gradient, state, info

    return Estimator(init, step, 2 * config.particles * config.unroll.truncation)
