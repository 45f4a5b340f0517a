"""The outer loop: theta improves over many inner trainings, and nothing is lost when it stops.

One jitted call is one outer step: a window of every particle, the meta-gradient, the outer optimizer. Everything random derives
from the seed and the outer step, so the checkpoint (theta, outer optimizer, particles with their accumulators, step) resumes a run
bit for bit.
"""

import dataclasses
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from tyro.conf import arg as tyro_arg

from lopt import config
from lopt.config import operational
from lopt.config.errors import LoptError
from lopt.estimators.base import PARTICLES, EstimatorConfig
from lopt.evaluation.evaluate import EvaluationConfig
from lopt.optimizers.momentum import LearnedOptimizer, OptimizerConfig
from lopt.runtime import distributed
from lopt.runtime.distributed import use_all_cores
from lopt.runtime.environment import record_start
from lopt.runtime.progress import Progress
from lopt.symmetry.spec import PyTree
from lopt.task.base import Datasets, DataStream, Problem, TaskConfig
from lopt.task.families import MixtureConfig
from lopt.task.named import task_config
from lopt.training import checkpoint
from lopt.training.checkpoint import BEST_DIR
from lopt.training.held_out import HeldOutConfig, make_held_out
from lopt.training.loggers import LoggerConfig, Loggers, check_loggers, open_loggers
from lopt.training.metrics import MetricsWriter
from lopt.training.mixture import Setup, set_up
from lopt.training.outer import MetaTrainState, OuterConfig, check_freeze, make_outer_step
from lopt.unroll import UnrollConfig

__all__ = [
    "BEST_DIR",
    "DivergedError",
    "MetaTrainConfig",
    "MetaTrainState",
    "OuterConfig",
    "Result",
    "initial_state",
    "initial_theta",
    "make_outer_step",
    "meta_train",
    "on_devices",
    "use_all_cores",
]


@dataclasses.dataclass(frozen=True)
class MetaTrainConfig:
    """One meta-training experiment: an inner task, a learned optimizer, and how its theta is improved.

    Fields marked operational may change when a run is resumed; the others make the run what it is.
    """

    task: TaskConfig | MixtureConfig
    """The inner problem, or several. From Python also a `Task` or `TaskFamily` itself, or the name of one."""
    optimizer: OptimizerConfig
    """The learned optimizer and its update network."""
    estimator: EstimatorConfig
    """The meta-gradient estimator."""
    unroll: UnrollConfig = UnrollConfig()
    """How long inner trainings run, and what of them is the meta-loss."""
    outer: OuterConfig = OuterConfig()
    """The optimizer of theta."""
    evaluation: EvaluationConfig = operational(EvaluationConfig())
    """How the result is raced against tuned rivals."""
    outer_steps: int = operational(50_000)
    """Updates of theta in all (the paper: 50,000)."""
    seed: int = 0
    """Seed of theta, particles and batches."""
    save_every: int = operational(25)
    """Outer steps between two checkpoints."""
    keep_checkpoints: int = operational(3)
    """Newest checkpoints to keep."""
    held_out: HeldOutConfig = HeldOutConfig()
    """Evaluation during meta-training, and the checkpoint that is best by it."""
    logging: Annotated[LoggerConfig, tyro_arg(name="")] = operational(LoggerConfig())
    """Where metrics go besides metrics.jsonl."""
    max_skipped: int = operational(20)
    """Outer steps in a row without a finite meta-gradient, or with every particle diverged, after which the run gives up."""

    def __post_init__(self) -> None:
        """Take a task however it is given, and see that estimator and unroll go together."""
        given: Any = self.task
        if isinstance(given, str | Problem):
            object.__setattr__(self, "task", task_config(given))
        self.estimator.check(self.unroll)


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


class DivergedError(LoptError, RuntimeError):
    """Nothing is learned any more: every particle diverged, or no meta-gradient was finite, in many outer steps in a row."""


SCORE = "held_out/score"  # among the metrics of a held-out evaluation
Observer = Callable[[int, Mapping[str, Any]], None]  # outer steps done, what was measured


def initial_theta(seed: int, optimizer: LearnedOptimizer) -> PyTree:
    """theta before meta-training with this seed."""
    return optimizer.init(jax.random.fold_in(jax.random.key(seed), 0))


def meta_train(
    experiment: MetaTrainConfig, run_dir: str | Path, *, progress: bool = True, observers: Sequence[Observer] = ()
) -> Result:
    """Meta-train until `experiment.outer_steps`, from the newest checkpoint in `run_dir` if there is one.

    A directory belongs to a run from its first checkpoint on: until then another config may take it. A run that has more outer steps
    already is left as it is. Writes `config.json`, `environment.json` (versions and devices of every start), `metrics.jsonl` (one object an outer step),
    `checkpoints/` and, with held-out evaluations, `best/` into `run_dir`. A run that was killed and started again ends with the same
    theta, bit for bit, as one that was not. SIGINT and SIGTERM save and return. Of several processes (`lopt.runtime.distributed`), the
    first writes, and all must see the directory.

    Args:
      experiment: what to train.
      run_dir: directory of the run, made if need be.
      progress: show a progress bar.
      observers: called after every outer step, in the process that writes.

    Raises:
      ConfigError: if `run_dir` holds a run of another config; names the fields that differ and may not.
      CheckpointError: if there are checkpoints and none is usable.
      DivergedError: if every particle diverges, or no meta-gradient is finite, outer step after outer step.
      PeerError: if another process of the run has stopped.
      ValueError: if one theta cannot serve all problems; names them.
    """
    run_dir = Path(run_dir)
    if experiment.outer_steps < 0 or min(experiment.save_every, experiment.keep_checkpoints, experiment.max_skipped) < 1:
        raise config.ConfigError(
            "outer_steps must not be negative; save_every, keep_checkpoints and max_skipped must be at least 1"
        )
    check_loggers(experiment.logging)
    done = (checkpoint.steps(run_dir) or [0])[-1]
    if done > experiment.outer_steps:  # nothing is left to do, and nothing is changed
        config.check_run_dir(run_dir, experiment)
        theta, done = checkpoint.load_newest_theta(run_dir)
        return Result(done, theta, interrupted=False)
    if distributed.is_main():
        # A directory belongs to a run from its first checkpoint on: an attempt that failed before leaves it free.
        config.claim_run_dir(run_dir, experiment, begun=done > 0)
    distributed.wait_for_all("the run directory")
    setup = set_up(experiment.task, experiment.optimizer, experiment.estimator, experiment.unroll)
    if distributed.is_main():
        _write_files(run_dir, setup)
    state = initial_state(experiment, setup)
    check_freeze(experiment.outer, state.theta)
    held_out = None
    if experiment.held_out.every:
        held_out = make_held_out(experiment.held_out, experiment.optimizer, setup.problems, state.theta, experiment.seed)
    restored = checkpoint.restore(run_dir, state._asdict())
    step = 0
    if restored is not None:
        step, fields = restored
        state = MetaTrainState(**fields)
    data = on_devices(setup.source, NamedSharding(setup.mesh, PartitionSpec()))
    datasets = data(step)
    outer_step = make_outer_step(experiment.seed, setup.estimator, experiment.outer, setup.optimizer)
    # Compiled ahead, so that the speed of the first step is that of a step.
    outer_step = outer_step.lower(np.int32(step), datasets, state).compile()

    def save() -> None:
        whole = distributed.on_host(state._asdict())
        if distributed.is_main():
            checkpoint.save(run_dir, step, whole, keep=experiment.keep_checkpoints)

    saved = step if restored is not None else None
    all_diverged = skipped = 0
    main = distributed.is_main()
    with (
        MetricsWriter(run_dir, resume_step=step) if main else nullcontext() as metrics,
        _open_loggers(experiment, run_dir, step) if main else nullcontext() as log,
        Progress(experiment.outer_steps, step, enabled=progress and main) as bar,
        _stop_signals() as stop_requested,
        distributed.naming_lost_peers(),
    ):
        while step < experiment.outer_steps and not distributed.any_process(stop_requested()):
            start = time.perf_counter()
            state, info = outer_step(np.int32(step), datasets, state)
            if step + 1 < experiment.outer_steps:
                datasets = data(step + 1)  # a stream reads and sends them while the step runs
            # One outer step in flight: XLA's CPU collectives abort when calls pile up on several CPU devices.
            info = {name: np.asarray(value).item() for name, value in jax.block_until_ready(info).items()}
            step += 1
            speed = setup.estimator.inner_steps / (time.perf_counter() - start)
            if held_out is not None and step % experiment.held_out.every == 0:
                state, found = _evaluate(held_out, run_dir, step, state)
                info |= found
            info["inner_steps_per_s"] = speed
            if metrics is not None and log is not None:
                metrics.write({"outer_step": step, **info})
                for observe in (log, *observers):
                    observe(step, info)
            scores = (info[SCORE], float(np.asarray(state.best))) if SCORE in info else None
            bar.update(step, meta_loss=info["meta_loss"], inner_steps_per_s=speed, diverged=info["diverged"], held_out=scores)
            if step % experiment.save_every == 0:
                save()
                saved = step
            all_diverged = all_diverged + 1 if info["all_diverged"] else 0
            skipped = skipped + 1 if info["skipped"] else 0
            if max(all_diverged, skipped) == experiment.max_skipped:
                save()
                what = "every particle diverged" if all_diverged >= skipped else "the meta-gradient was not finite"
                raise DivergedError(
                    f"{what} in each of the last {experiment.max_skipped} outer steps (outer step {step}); the state is saved in "
                    f"'{run_dir}'. Start a new run with a smaller optimizer.alpha, optimizer.beta or outer.learning_rate."
                )
        if saved != step:
            save()
        return Result(step, distributed.on_host(state.evaluated), interrupted=step < experiment.outer_steps)


def _open_loggers(experiment: MetaTrainConfig, run_dir: Path, step: int) -> Loggers:
    started = record_start(run_dir, step)
    return open_loggers(experiment.logging, run_dir, config.to_dict(experiment), started, step)


def _write_files(run_dir: Path, setup: Setup) -> None:
    """What belongs to the problems, such as tokenizers, beside the run: whoever uses its theta may need them."""
    for name, problem in setup.problems.items():
        for file, text in problem.example.files.items():
            config.write_atomically(run_dir / (file if len(setup.problems) == 1 else f"{name}.{file}"), text.encode())


def _evaluate(
    held_out: Callable[[PyTree], dict[str, float]], run_dir: Path, step: int, state: MetaTrainState
) -> tuple[MetaTrainState, dict[str, float]]:
    """Evaluate, and keep theta in `best/` if it is the best so far. The state is that after the evaluation."""
    theta = distributed.on_host(state.evaluated)
    found = held_out(theta)
    score = np.float32(found[SCORE])
    if score < np.asarray(state.best):
        state = state._replace(best=jax.device_put(score, state.best.sharding))
        if distributed.is_main():
            checkpoint.save(run_dir / BEST_DIR, step, {"theta": theta, "score": score}, keep=1)
    return state, found


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


def initial_state(experiment: MetaTrainConfig, setup: Setup) -> MetaTrainState:
    """What the first outer step starts from: theta and its optimizer on every device, the particles spread over the mesh."""
    replicated, sharded = (NamedSharding(setup.mesh, spec) for spec in (PartitionSpec(), PartitionSpec(PARTICLES)))

    def make() -> MetaTrainState:
        theta = initial_theta(experiment.seed, setup.optimizer)
        particles = setup.estimator.init(jax.random.fold_in(jax.random.key(experiment.seed), 1), theta)
        average = None if experiment.outer.average is None else theta
        return MetaTrainState(theta, experiment.outer.make().init(theta), particles, average, jnp.float32(jnp.inf))

    shapes = jax.eval_shape(make)
    shardings = jax.tree.map(lambda _: replicated, shapes)._replace(estimator=jax.tree.map(lambda _: sharded, shapes.estimator))
    return jax.jit(make, out_shardings=shardings)()


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
