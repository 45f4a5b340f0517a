"""The outer loop: theta improves over many inner trainings, and nothing is lost when it stops.

One jitted call is one outer step: a window of every particle, the meta-gradient, the outer optimizer. Everything random derives
from the seed and the outer step, so the checkpoint (theta, outer optimizer, particles with their accumulators, step) resumes a run
bit for bit.
"""

import dataclasses
import hashlib
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
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
from lopt.layers.kernels import ffi as native
from lopt.networks.update import CouplingConfig, is_deep_sets
from lopt.optimizers.momentum import LearnedOptimizer, OptimizerConfig
from lopt.optimizers.published import is_published, read_published
from lopt.runtime import distributed
from lopt.runtime.environment import ENVIRONMENT_FILE, changes, environment, packages, read_starts, record_start
from lopt.runtime.locks import LOCK_FILE
from lopt.runtime.progress import Progress
from lopt.runtime.sources import code_digest, sources
from lopt.symmetry.spec import PyTree, named_leaves
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
from lopt.training.run_dir import claimed
from lopt.training.stall import GAVE_UP, Stall
from lopt.unroll import UnrollConfig


@dataclasses.dataclass(frozen=True)
class MetaTrainConfig:
    """One meta-training experiment: an inner task, a learned optimizer, and how its theta is improved.

    Fields marked operational say how a run is carried out and may change when it is resumed; the others make it what it is.
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
    init_from: str | None = None
    """What theta starts from: a run's directory, the best or the newest of it, an optimizer's folder, or a published theta of small_fc or
    Celo2 (theta.state); None: a draw. Its optimizer must have a theta of the same structure, or be a DeepSets where this one's network
    has a pointwise map beside its terms (`terms`): that is then the DeepSets', and the terms are zero. `{seed}` in it is the run's seed."""
    save_every: int = operational(25)
    """Outer steps between two checkpoints."""
    keep_checkpoints: int = operational(3)
    """Newest checkpoints to keep."""
    held_out: HeldOutConfig = HeldOutConfig()
    """Evaluation during meta-training, and the checkpoint that is best by it."""
    logging: Annotated[LoggerConfig, tyro_arg(name="")] = operational(LoggerConfig())
    """Where metrics go besides metrics.jsonl."""
    max_skipped: int = operational(20)
    """Outer steps in a row from which nothing is learned, after which the run gives up: every particle diverged, every loss was at the
    cap, or the meta-gradient was zero or not finite."""

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
    """Nothing is learned any more, in many outer steps in a row: see `lopt.training.stall`."""


SCORE = "held_out/score"  # among the metrics of a held-out evaluation
Observer = Callable[[int, Mapping[str, Any]], None]  # outer steps done, what was measured


def initial_theta(seed: int, optimizer: LearnedOptimizer) -> PyTree:
    """The theta that meta-training with this seed starts from."""
    return optimizer.init(jax.random.fold_in(jax.random.key(seed), 0))


def starting_theta(experiment: MetaTrainConfig, optimizer: LearnedOptimizer) -> PyTree | None:
    """The theta of another training that this one starts from; None: a draw.

    Raises:
      ConfigError: naming the leaf by which it differs from a theta of this experiment.
      CheckpointError, PublishedError: if there is none where `init_from` says.
    """
    if experiment.init_from is None:
        return None
    source = Path(experiment.init_from.replace("{seed}", str(experiment.seed)))
    alone = source / checkpoint.THETA_FILE
    if is_published(source):
        theta = read_published(source)[1]
    else:
        theta = checkpoint.read_theta(alone) if alone.exists() else checkpoint.chosen_theta(source)[0]
    wanted = jax.eval_shape(lambda: initial_theta(experiment.seed, optimizer))
    network = getattr(experiment.optimizer, "network", None)
    if isinstance(network, CouplingConfig) and is_deep_sets(theta.get("network")):
        try:
            theta = {**theta, "network": network.begin_as(theta["network"], wanted["network"])}
        except ValueError as error:
            raise config.ConfigError(f"init_from={str(source)!r} is a DeepSets' theta: {error}") from None
    there, here = ({path: leaf.shape for path, leaf in named_leaves(tree)} for tree in (theta, wanted))
    for path in sorted(there.keys() | here.keys()):
        if there.get(path) != here.get(path):
            said = [f"has the shape {leaves[path]}" if path in leaves else "is not there" for leaves in (there, here)]
            raise config.ConfigError(
                f"init_from={str(source)!r}: leaf '{path}' of its theta {said[0]}, and in this experiment's {said[1]}; rule, "
                "features and network must be the same in both"
            )
    return jax.tree.unflatten(jax.tree.structure(wanted), [jnp.asarray(leaf, jnp.float32) for _, leaf in named_leaves(theta)])


def meta_train(
    experiment: MetaTrainConfig,
    run_dir: str | Path,
    *,
    progress: bool = True,
    observers: Sequence[Observer] = (),
    restart: bool = False,
    strict: bool = False,
) -> Result:
    """Meta-train until `experiment.outer_steps`, from the newest checkpoint in `run_dir` if there is one.

    A directory belongs to a run from its first checkpoint on: until then another config may take it. A run that has more outer steps
    already is left as it is.

    Writes `config.json`, `environment.json` (versions and devices of every start), `metrics.jsonl` (one object an outer step),
    `checkpoints/` and, with held-out evaluations, `best/` into `run_dir`. A run that was killed and started again ends with the same
    theta, bit for bit, as one that was not. SIGINT and SIGTERM save and return. Of several processes (`lopt.runtime.distributed`), the
    first writes, and all must see the directory.

    Args:
      experiment: what to train.
      run_dir: directory of the run, made if need be.
      progress: show a progress bar.
      observers: called after every outer step, in the process that writes.
      restart: begin anew; a run that is there is kept beside it, under another name.
      strict: refuse to go on where theta would not be that of an unbroken run to the last bit, rather than warn.

    Raises:
      ConfigError: if `run_dir` holds a run of another config (names the fields that differ), one whose config or checkpoints are gone, or,
        with `strict`, one that was made by other code or on another machine.
      BusyError: if another process is on this run.
      CheckpointError: if there are checkpoints and none is usable.
      DivergedError: if nothing is learned, outer step after outer step: every particle diverges, every loss is at the cap, or the
        meta-gradient is zero or not finite.
      DisagreementError: if the processes of the run were not started alike.
      PeerError: if another process of the run has stopped.
      ValueError: if one theta cannot be compatible with all problems; names them.

    Warns:
      UserWarning: if it goes on otherwise than before, or ends while every loss is at the cap; says what to change.
    """
    run_dir = Path(run_dir)
    if experiment.outer_steps < 0 or min(experiment.save_every, experiment.keep_checkpoints, experiment.max_skipped) < 1:
        raise config.ConfigError(
            "outer_steps must not be negative; save_every, keep_checkpoints and max_skipped must be at least 1"
        )
    check_loggers(experiment.logging)
    done = (checkpoint.steps(run_dir) or [0])[-1]
    if done > experiment.outer_steps and not restart:  # nothing is left to do, and nothing is changed
        config.check_run_dir(run_dir, experiment)
        theta, done = checkpoint.load_newest_theta(run_dir)
        return Result(done, theta, interrupted=False)
    with ExitStack() as held, distributed.naming_lost_peers():
        distributed.check_same(_program(experiment))
        claim = claimed(run_dir, experiment, restart=restart)
        distributed.main_does(lambda: held.enter_context(claim))
        distributed.check_sees(run_dir / LOCK_FILE)
        return _train(experiment, run_dir, progress, observers, strict, held)


def _program(experiment: MetaTrainConfig) -> dict[str, str]:
    """All that must be the same in every process, as text."""
    if jax.process_count() == 1:
        return {}
    settings = ("jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl", "jax_threefry_partitionable")
    return {
        **config.leaves(experiment),
        **{name: str(getattr(jax.config, name)) for name in settings},
        **packages(),
        **sources(experiment),
        "number of local devices": str(jax.local_device_count()),
    }


def _train(
    experiment: MetaTrainConfig, run_dir: Path, progress: bool, observers: Sequence[Observer], strict: bool, held: ExitStack
) -> Result:
    """`meta_train` in a run directory that is this run's; `held` closes what is opened."""
    setup = set_up(experiment.task, experiment.optimizer, experiment.estimator, experiment.unroll)
    distributed.main_does(lambda: _write_files(run_dir, setup))
    # A run that goes on has its theta: what it started from may be gone, or on another machine.
    start = None if checkpoint.steps(run_dir) else starting_theta(experiment, setup.optimizer)
    state = initial_state(experiment, setup, start)
    check_freeze(experiment.outer, state.theta)
    held_out = None
    if experiment.held_out.every:
        held_out = make_held_out(experiment.held_out, experiment.optimizer, setup.problems, state.theta, experiment.seed)
    restored = checkpoint.restore(run_dir, state._asdict())
    step = 0
    if restored is not None:
        step, fields = restored
        state = MetaTrainState(**fields)
    if jax.process_count() > 1:
        distributed.check_same({"the outer step it goes on from": str(step), "the data": _digest(setup.source.at(step))})
    about = _Resumption(step, {"code": code_digest(experiment), **_left_to_xla(experiment, setup)}, strict)
    opened = distributed.main_does(lambda: _open_files(experiment, run_dir, about, held))
    metrics, log = opened or (None, None)
    data = on_devices(setup.source, NamedSharding(setup.mesh, PartitionSpec()))
    datasets = data(step)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    outer_step = make_outer_step(experiment.seed, setup.estimator, experiment.outer, setup.optimizer, shardings)
    # Compiled ahead, so that the speed of the first step is that of a step.
    outer_step = outer_step.lower(np.int32(step), datasets, state).compile()
    distributed.wait_for_all()

    def save() -> None:
        whole = distributed.on_host(state._asdict())

        def write() -> None:
            if metrics is not None:
                metrics.sync()  # no checkpoint is of a step whose metrics a power cut can take
            checkpoint.save(run_dir, step, whole, keep=experiment.keep_checkpoints)

        distributed.main_does(write)

    saved = step if restored is not None else None
    stall = Stall(experiment.max_skipped, setup.estimator.outer_steps)
    bar = held.enter_context(Progress(experiment.outer_steps, step, enabled=progress and distributed.is_main()))
    stop_requested = held.enter_context(_stop_signals())
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
        stalled = stall.update(info)
        if stalled:
            info[GAVE_UP] = stalled
        if metrics is not None and log is not None:
            metrics.write({"outer_step": step, **info})
            for observe in (log, *observers):
                observe(step, info)
        shown = {name: info[name] for name in ("meta_loss", "inner_steps_per_s", "diverged", "capped", "all_capped")}
        bar.update(step, **shown, held_out=(info[SCORE], float(np.asarray(state.best))) if SCORE in info else None)
        if step % experiment.save_every == 0 or stalled:
            save()
            saved = step
        if stalled:
            raise DivergedError(f"{stalled} (outer step {step}); the state is saved in '{run_dir}'. {stall.advice}")
    if saved != step:
        save()
    if stall.capped and distributed.is_main():
        warnings.warn(stall.capped, stacklevel=3)
    theta = jax.tree.map(jnp.asarray, distributed.on_host(state.evaluated))
    return Result(step, theta, interrupted=step < experiment.outer_steps)


def _left_to_xla(experiment: MetaTrainConfig, setup: Setup) -> dict[str, dict[str, str]]:
    """Where there is a kernel: the tasks on which it does not serve the update network, and why."""
    if native.kernel() is None:
        return {}
    reasons = {
        name: experiment.optimizer.left_to_xla(problem.spec, problem.spec.sizes(problem.param_shapes()))
        for name, problem in setup.problems.items()
    }
    reasons = {name: reason for name, reason in reasons.items() if reason}
    return {"left_to_xla": reasons} if reasons else {}


class _Resumption(NamedTuple):
    """How a start goes on: from which outer step, what its environment says besides, and whether it may differ from the one before."""

    step: int
    about: Mapping[str, Any]
    strict: bool


def _open_files(experiment: MetaTrainConfig, run_dir: Path, start: _Resumption, held: ExitStack) -> tuple[MetricsWriter, Loggers]:
    """Metrics, loggers and the entry of this start; says what of the run before is missing, and what is not as it was."""
    earlier = read_starts(run_dir) if start.step and (run_dir / ENVIRONMENT_FILE).exists() else []
    differ = changes(earlier[-1], {**environment(), **start.about}) if earlier else []
    if differ:
        text = f"{run_dir} goes on otherwise than before: {'; '.join(differ)}. Theta will not be, bit for bit, that of an unbroken run"
        if start.strict:
            raise config.ConfigError(f"{text}; start it as it was, or without strict (--strict)")
        warnings.warn(text, stacklevel=5)
    metrics = held.enter_context(MetricsWriter(run_dir, resume_step=start.step))
    more: dict[str, Any] = dict(start.about)
    if metrics.missing:
        more["missing_metrics"] = metrics.missing
        listing = ", ".join(f"{first} to {last}" for first, last in metrics.missing)
        warnings.warn(
            f"{metrics.path} lacks the outer steps {listing}, which were done before: a power cut may have taken them. They are named in "
            f"{ENVIRONMENT_FILE}; theta is not concerned",
            stacklevel=5,
        )
    entry = record_start(run_dir, start.step, **more)
    return metrics, held.enter_context(open_loggers(experiment.logging, run_dir, config.to_dict(experiment), entry, start.step))


def _digest(data: Any) -> str:
    """Of the arrays that an outer step is given."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(data):
        array = np.ascontiguousarray(leaf)
        found.update(f"{array.dtype} {array.shape} ".encode())
        found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


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
    score = distributed.number_of_main(found[SCORE])  # another processor, or another kernel, rounds otherwise
    if score < np.asarray(state.best):
        state = state._replace(best=jax.device_put(score, state.best.sharding))
        distributed.main_does(lambda: checkpoint.save(run_dir / BEST_DIR, step, {"theta": theta, "score": score}, keep=1))
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


def initial_state(experiment: MetaTrainConfig, setup: Setup, start: PyTree | None = None) -> MetaTrainState:
    """What the first outer step starts from: theta, a draw if none is given, and its optimizer on every device, the particles spread."""
    replicated, sharded = (NamedSharding(setup.mesh, spec) for spec in (PartitionSpec(), PartitionSpec(PARTICLES)))

    def make() -> MetaTrainState:
        theta = initial_theta(experiment.seed, setup.optimizer) if start is None else start
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
