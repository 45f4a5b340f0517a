"""What all estimators share: particles spread over a mesh, and what is reported of them."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, PartitionSpec

from lopt.estimators.base import PARTICLES
from lopt.runtime.distributed import even_devices
from lopt.symmetry.spec import PyTree
from lopt.task.base import Datasets
from lopt.unroll import Clock, Training, Unroll, UnrollConfig, WindowLosses, advance, first_clock

StepParticle = Callable[[jax.Array, PyTree, Datasets, PyTree], Any]  # key, theta, datasets, particle


def mesh_for(particles: int, mesh: Mesh | None) -> Mesh:
    """The mesh itself, by default `particle_mesh(particles)`; `ValueError` unless the particles divide evenly over it."""
    if mesh is None:
        return particle_mesh(particles)
    if particles % mesh.shape[PARTICLES]:
        raise ValueError(f"{particles} particles cannot be split over {mesh.shape[PARTICLES]} devices evenly")
    return mesh


def particle_mesh(particles: int) -> Mesh:
    """A mesh for particles to be sharded over: as many of the devices as divide their number evenly."""
    devices = even_devices(particles)
    return jax.make_mesh((len(devices),), (PARTICLES,), devices=devices, axis_types=(AxisType.Auto,))


def check_whole(unroll: UnrollConfig) -> None:
    """Raise `ValueError` for settings that do nothing where an outer step sees whole inner trainings."""
    if unroll.stagger:
        raise ValueError("stagger does nothing where an outer step sees whole inner trainings: leave it out")


def map_batched(batched: bool, f: Callable[..., Any], *args: PyTree) -> Any:
    """`f` over the leading axis: one after another keeps each particle in cache and lets `cond` skip, where a batch would not."""
    return jax.vmap(f)(*args) if batched else jax.lax.map(lambda xs: f(*xs), args)


def is_batched(batched: bool | None, mesh: Mesh) -> bool:
    """Whether a device's particles are one batch: as asked for, else everywhere but on CPU."""
    return mesh.devices.flat[0].platform != "cpu" if batched is None else batched


def init_particles(count: int, key: jax.Array, init: Callable[[jax.Array, jax.Array], PyTree]) -> PyTree:
    """`init(key, index)` for each particle, stacked; particle i's key is a function of its index alone."""
    return jax.vmap(lambda index: init(jax.random.fold_in(key, index), index))(jnp.arange(count))


class Single(NamedTuple):
    """A particle that is one inner training, under theta itself.

    Attributes:
      training: where it stands.
      clock: its own.
    """

    training: Training
    clock: Clock


def init_singles(count: int, unroll: Unroll, key: jax.Array, theta: PyTree) -> Single:
    """Fresh inner trainings, stacked."""

    def init(key: jax.Array, index: jax.Array) -> Single:
        return Single(unroll.start(key, theta), first_clock(unroll.config, jax.random.fold_in(key, 0), index, count))

    return init_particles(count, key, init)


def go_on(unroll: Unroll, key: jax.Array, theta: PyTree, particle: Single, diverged: jax.Array) -> tuple[Single, jax.Array]:
    """The particle after a window, and whether it starts anew: at its horizon, or because it diverged."""
    clock, restart = advance(unroll.config, jax.random.fold_in(key, 0), particle.clock, diverged)
    training = jax.lax.cond(restart, lambda _: unroll.start(key, theta), lambda training: training, particle.training)
    return Single(training, clock), restart


def step_particles(
    count: int, mesh: Mesh, batched: bool, step: StepParticle
) -> Callable[[jax.Array, PyTree, Datasets, PyTree], Any]:
    """`step` over all particles, sharded over the mesh: results have the particles as leading axis.

    Every particle draws its randomness from its own index, so results do not depend on the mesh.
    """
    sharded, replicated = PartitionSpec(PARTICLES), PartitionSpec()

    @partial(jax.shard_map, mesh=mesh, in_specs=(sharded, replicated, replicated, sharded), out_specs=sharded, check_vma=False)
    def step_shard(keys: jax.Array, theta: PyTree, datasets: Datasets, particles: PyTree) -> Any:
        return map_batched(batched, lambda key, particle: step(key, theta, datasets, particle), keys, particles)

    def step_all(key: jax.Array, theta: PyTree, datasets: Datasets, particles: PyTree) -> Any:
        keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(count))
        return step_shard(keys, theta, datasets, particles)

    return step_all


def statistics(losses: WindowLosses, finished: jax.Array, diverged: jax.Array) -> dict[str, jax.Array]:
    """What one particle reports; `losses` may have leading axes of members and windows."""
    return {
        "loss": jnp.mean(losses.mean),
        "finished": finished & ~diverged,
        "diverged": diverged,
        "capped": jnp.sum(losses.capped),
        "nonfinite": jnp.sum(losses.nonfinite),
        "uncapped": jnp.sum(losses.uncapped),
    }


def summarize(stats: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The info of an outer step from the statistics of all particles, [P] each.

    `meta_loss` is the mean over particles of this window's capped losses, `final_loss` that of the last windows of the inner trainings
    that ended here (NaN if none did), `finished` their number, `diverged` that of particles reset because a loss was not finite;
    `capped` and `nonfinite` count inner steps; `all_capped`: there were no others.
    """
    finished = stats["finished"]
    return {
        "meta_loss": jnp.mean(stats["loss"]),
        "final_loss": jnp.sum(jnp.where(finished, stats["loss"], 0.0)) / jnp.sum(finished, dtype=jnp.float32),
        "finished": jnp.sum(finished, dtype=jnp.int32),
        "diverged": jnp.sum(stats["diverged"], dtype=jnp.int32),
        "all_diverged": jnp.all(stats["diverged"]),
        "capped": jnp.sum(stats["capped"]),
        "nonfinite": jnp.sum(stats["nonfinite"]),
        "all_capped": jnp.sum(stats["uncapped"]) == 0,
    }


def first_of(tree: PyTree) -> PyTree:
    """The first along the leading axis."""
    return jax.tree.map(lambda x: x[0], tree)
