"""The outer loop: theta improves over many inner trainings, and nothing is lost when it stops.

One jitted call is one outer step: a window of every particle, the meta-gradient, the outer optimizer. Everything random derives
from the seed and the outer step, so the checkpoint (theta, outer optimizer, particles with their accumulators, step) resumes a run
bit for bit.
"""

import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from lopt import checkpoint, config
from lopt.estimators.base import PARTICLES, Estimator, EstimatorConfig
from lopt.evaluate import EvaluationConfig
from lopt.metrics import MetricsWriter
from lopt.optimizer import LearnedOptimizer, OptimizerConfig
from lopt.progress import Progress
from lopt.symmetry.spec import PyTree
from lopt.task import Datasets, DataStream, TaskConfig


@dataclasses.dataclass(frozen=True)
class OuterConfig:
    """The optimizer of theta: Adam on the clipped meta-gradient, its step size constant or falling along a cosine."""

    learning_rate: float = 1e-4
    """Adam's step size (not stated in the paper; 1e-4 in a follow-up with the same set-up)."""
    clip_norm: float = 1.0
    """The meta-gradient is scaled down to this global norm (the paper: 1.0)."""
    decay_steps: int | None = None
    """Outer steps over which the step size falls to a tenth, to stay there; None: constant. Apart from `outer_steps`, which may grow."""

    def __post_init__(self) -> None:
        if not self.learning_rate > 0 or not self.clip_norm > 0:
            raise ValueError(
                f"outer.learning_rate and outer.clip_norm must be positive, got {self.learning_rate}, {self.clip_norm}"
            )
        if self.decay_steps is not None and self.decay_steps < 1:
            raise ValueError(f"outer.decay_steps must be at least 1 or None, got {self.decay_steps}")

    def make(self) -> optax.GradientTransformation:
        """The optax transform of theta."""
        rate = self.learning_rate
        if self.decay_steps is not None:
            rate = optax.cosine_decay_schedule(self.learning_rate, self.decay_steps, alpha=0.1)
        return optax.chain(optax.clip_by_global_norm(self.clip_norm), optax.adam(rate))


@dataclasses.dataclass(frozen=True)
class MetaTrainConfig:
    """One meta-training experiment: an inner task, a learned optimizer, and how its theta is improved."""

    task: TaskConfig
    """The inner problem."""
    optimizer: OptimizerConfig
    """The learned optimizer and its update network."""
    estimator: EstimatorConfig
    """The meta-gradient estimator and the unrolls it makes."""
    outer: OuterConfig = OuterConfig()
    """The optimizer of theta."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """How the result is raced against tuned rivals."""
    outer_steps: int = 50_000
    """Updates of theta in all (the paper: 50,000); may grow when a run is resumed."""
    seed: int = 0
    """Seed of theta, particles and batches."""
    save_every: int = 25
    """Outer steps between two checkpoints."""
    keep_checkpoints: int = 3
    """Newest checkpoints to keep."""


class MetaTrainState(NamedTuple):
    """All that a run must carry from one outer step to the next."""

    theta: PyTree
    outer: PyTree
    estimator: PyTree


class Result(NamedTuple):
    """Where a call of `meta_train` ended.

    Attributes:
      step: outer steps done in all.
      theta: the meta-parameters.
      interrupted: SIGINT or SIGTERM ended it before its last step; the state is saved.
    """

    step: int
    theta: PyTree
    interrupted: bool


class DivergedError(RuntimeError):
    """Every particle diverged in many outer steps in a row: nothing is learned any more."""


RESUME_MAY_CHANGE = ("outer_steps",)
_ALL_DIVERGED_LIMIT = 20


def particle_mesh(particles: int) -> Mesh:
    """A mesh for particles to be sharded over: as many of the devices as divide their number evenly."""
    count = max(n for n in range(1, jax.device_count() + 1) if particles % n == 0)
    return jax.make_mesh((count,), (PARTICLES,), devices=jax.devices()[:count], axis_types=(AxisType.Auto,))


def use_all_cores() -> None:
    """Make one CPU device of each core, so that particles spread over them; call before JAX is first used."""
    # The cores this process may use, where the system tells; not all of the machine's, which a container may withhold.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jax.config.update("jax_num_cpu_devices", cores)


def initial_theta(seed: int, optimizer: LearnedOptimizer) -> PyTree:
    """theta before meta-training with this seed."""
    return optimizer.init(jax.random.fold_in(jax.random.key(seed), 0))


def make_outer_step(
    seed: int, estimator: Estimator, outer: optax.GradientTransformation, optimizer: LearnedOptimizer
) -> jax.stages.Wrapped:
    """The jitted outer step `(step, datasets, state) -> (state, info)`; the state is donated.

    The key of outer step n is a function of the seed and n alone. An outer gradient that is not finite leaves theta unchanged and is
    counted in `info["skipped"]`.
    """
    key = jax.random.fold_in(jax.random.key(seed), 2)

    def outer_step(step: jax.Array, datasets: Datasets, state: MetaTrainState):
        gradient, particles, info = estimator.step(jax.random.fold_in(key, step), state.theta, datasets, state.estimator)
        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(norm)
        with jax.numpy_dtype_promotion("standard"):  # optax's Adam raises a float to an integer power
            updates, outer_state = outer.update(gradient, state.outer, state.theta)
        theta, outer_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (optax.apply_updates(state.theta, updates), outer_state),
            (state.theta, state.outer),
        )
        info |= {"gradient_norm": norm, "skipped": (~finite).astype(jnp.int32), **optimizer.scalars(theta)}
        return MetaTrainState(theta, outer_state, particles), info

    return jax.jit(outer_step, donate_argnums=2)


def meta_train(experiment: MetaTrainConfig, run_dir: str | Path, *, progress: bool = True) -> Result:
    """Meta-train until `experiment.outer_steps`, from the newest checkpoint in `run_dir` if there is one.

    Writes `config.json`, `metrics.jsonl` (one object an outer step) and `checkpoints/` into `run_dir`. A run that was killed and
    started again ends with the same theta, bit for bit, as one that was not. SIGINT and SIGTERM save and return.

    Args:
      experiment: what to train.
      run_dir: directory of the run, made if need be.
      progress: show a progress bar.

    Raises:
      ConfigError: if `run_dir` holds a run of another config; names the fields that differ.
      CheckpointError: if there are checkpoints and none is usable.
      DivergedError: if every particle diverges, outer step after outer step.
    """
    run_dir = Path(run_dir)
    if experiment.outer_steps < 0 or experiment.save_every < 1 or experiment.keep_checkpoints < 1:
        raise config.ConfigError("outer_steps must not be negative; save_every and keep_checkpoints must be at least 1")
    config.claim_run_dir(run_dir, experiment, may_change=RESUME_MAY_CHANGE)
    task = experiment.task.make()
    optimizer = experiment.optimizer.make(task.spec, task.spec.sizes(task.param_shapes()))
    mesh = particle_mesh(experiment.estimator.particles)
    estimator = experiment.estimator.make(task, optimizer, mesh)
    outer = experiment.outer.make()

    state = _initial_state(experiment.seed, optimizer, estimator, outer, mesh)
    restored = checkpoint.restore(run_dir, state._asdict())
    step = 0
    if restored is not None:
        step, fields = restored
        state = MetaTrainState(**fields)
    data = on_devices(task.datasets, NamedSharding(mesh, PartitionSpec()))
    datasets = data(step)
    outer_step = make_outer_step(experiment.seed, estimator, outer, optimizer)
    # Compiled ahead, so that the speed of the first step is that of a step.
    outer_step = outer_step.lower(jnp.int32(step), datasets, state).compile()

    def save() -> None:
        checkpoint.save(run_dir, step, state._asdict(), keep=experiment.keep_checkpoints)

    saved = step if restored is not None else None
    all_diverged = 0
    with (
        MetricsWriter(run_dir, resume_step=step) as metrics,
        Progress(experiment.outer_steps, step, enabled=progress) as bar,
        _stop_signals() as stop_requested,
    ):
        while step < experiment.outer_steps and not stop_requested():
            start = time.perf_counter()
            state, info = outer_step(jnp.int32(step), datasets, state)
            if step + 1 < experiment.outer_steps:
                datasets = data(step + 1)  # a stream reads and sends them while the step runs
            # One outer step in flight: XLA's CPU collectives abort when calls pile up on several CPU devices.
            info = {name: np.asarray(value).item() for name, value in jax.block_until_ready(info).items()}
            step += 1
            speed = estimator.inner_steps / (time.perf_counter() - start)
            metrics.write({"outer_step": step, **info, "inner_steps_per_s": speed})
            bar.update(step, meta_loss=info["meta_loss"], inner_steps_per_s=speed, diverged=info["diverged"])
            if step % experiment.save_every == 0:
                save()
                saved = step
            all_diverged = all_diverged + 1 if info["all_diverged"] else 0
            if all_diverged == _ALL_DIVERGED_LIMIT:
                save()
                raise DivergedError(
                    f"every particle diverged in each of the last {_ALL_DIVERGED_LIMIT} outer steps (outer step {step}); the state is "
                    f"saved in '{run_dir}'. Start a new run with a smaller optimizer.alpha, optimizer.beta or outer.learning_rate."
                )
        if saved != step:
            save()
        return Result(step, state.theta, interrupted=stop_requested())


def on_devices(source: Datasets | DataStream, sharding: Sharding) -> Callable[[int], Datasets]:
    """`at(step)` with its arrays on the devices; they are sent again only when the source gives another object."""
    held: tuple[Datasets, Datasets] | None = None  # as given, and on the devices

    def at(step: int) -> Datasets:
        nonlocal held
        given = source.at(step)
        if held is None or given is not held[0]:
            held = given, jax.device_put(given, sharding)
        return held[1]

    return at


def _initial_state(
    seed: int, optimizer: LearnedOptimizer, estimator: Estimator, outer: optax.GradientTransformation, mesh: Mesh
) -> MetaTrainState:
    replicated, sharded = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(PARTICLES))

    def make() -> MetaTrainState:
        theta = initial_theta(seed, optimizer)
        particles = estimator.init(jax.random.fold_in(jax.random.key(seed), 1), theta)
        return MetaTrainState(theta, outer.init(theta), particles)

    return jax.jit(make, out_shardings=MetaTrainState(replicated, replicated, sharded))()


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """While inside, SIGINT and SIGTERM only ask for a stop between two outer steps; a second SIGINT interrupts at once."""
    asked = False

    def ask(signum: int, frame: Any) -> None:
        nonlocal asked
        if asked and signum == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True

    try:
        previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # Signals can only be handled in the main thread; elsewhere the caller keeps its own way to stop.
        previous = {}
    try:
        yield lambda: asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
