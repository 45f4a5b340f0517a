"""Race optimizers on a suite of tasks, each tuned by the same number of trials, and write one page about it."""

import argparse
import concurrent.futures
import dataclasses
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from rich.console import Console

from lopt.config import load_file, to_dict
from lopt.evaluation.aggregates import suite_table
from lopt.evaluation.baselines import Hyper, Schedule, factor
from lopt.evaluation.suite import (
    Entrant,
    Outcome,
    SuiteConfig,
    SuiteResult,
    compete,
    identity,
    outcome_path,
    read_outcome,
    rival,
    save_outcome,
)
from lopt.layers.kernels.ffi import available_cores
from lopt.pretrained.bind import Trained, bind, rule_of
from lopt.pretrained.load import is_trained, open_trained
from lopt.reporting.suite_report import write_suite
from lopt.reporting.tables import rich_lines
from lopt.runtime.program import prepare
from lopt.runtime.progress import duration
from lopt.symmetry.spec import PyTree
from lopt.task import cache_root
from lopt.task.base import Problem

SUITES = Path(__file__).resolve().parents[1] / "configs" / "suite"
DESCRIPTION = """\
Every optimizer is tuned on every task by the same number of trials of its learning rate and raced from the same initialisations on the
same batches. What a race found is kept in DIR/races: call again with the same arguments to go on after an interruption, with one
optimizer or task more to run that alone.

Writes into DIR:
  report.html   aggregates with intervals, the performance profile, every task's losses, and what they mean, on one page
  summary.md    the same as text
  ratios.csv    every run's final loss over the reference's;  suite.json: all figures
  profile.png   the picture"""
EPILOG = """\
examples:
  python scripts/evaluate_suite.py --scale small
  python scripts/evaluate_suite.py --scale small --optimizer nadamw muon runs/direction
  python scripts/evaluate_suite.py --suite my_suite.py --optimizer nadamw adam --trials 1 4 --jobs 4"""


@dataclasses.dataclass(frozen=True)
class Unit:
    """One optimizer on one task: what a process does at a time.

    Attributes:
      index: of the task in the suite.
      problem: the task's name.
      optimizer: as it was named.
      path: where its outcome goes.
    """

    index: int
    problem: str
    optimizer: str
    path: Path


def entrant(source: str, problem: Problem) -> tuple[Entrant, Any]:
    """An optimizer by name on a task, and what it is, as JSON can hold it.

    Raises:
      ValueError: if there is none of that name, or its theta is not compatible with the task's weights.
    """
    if not is_trained(source):
        return rival(source), source
    trained = open_trained(source)
    return learned(source, trained, problem), to_dict(trained.config)


def learned(source: str, trained: Trained, problem: Problem) -> Entrant:
    """A meta-trained optimizer on a task: at the user's rate where its rule has one, which is first tried as it was meta-trained."""
    try:
        optimizer = bind(trained, problem.spec, problem.param_shapes())
    except ValueError as error:
        raise ValueError(f"'{source}' is not compatible with the weights of '{problem.name}': {error}") from error
    rule = rule_of(trained.config)
    if rule is None or not rule.needs_rate:
        return Entrant(source, lambda given: optimizer.opt_fn(given[0]), trained.theta, None)
    scale_by = optimizer.scale_by
    if scale_by is None:
        raise ValueError(f"'{source}' has a rule whose rate is the user's but gives no direction without it")

    def opt_fn(given: tuple[PyTree, Hyper]) -> optax.GradientTransformationExtraArgs:
        theta, hyper = given
        schedule = hyper.schedule or Schedule(0.0, 0.0, 1.0)
        rate = optax.scale_by_learning_rate(lambda step: hyper.learning_rate * factor(schedule, jnp.asarray(step)))
        return optax.chain(scale_by(theta), rate)

    return Entrant(source, opt_fn, trained.theta, getattr(rule, "learning_rate", 1e-3))


def run_unit(config: SuiteConfig, unit: Unit, fresh: bool) -> float:
    """Do a unit's work unless it is done; the seconds that it took, or had taken."""
    task = config.tasks[unit.index]
    problem = task.task.make()
    optimizer, about_optimizer = entrant(unit.optimizer, problem)
    about = identity(config, task, about_optimizer, optimizer.theta)
    kept = None if fresh else read_outcome(unit.path, about)
    if kept is None:
        kept = compete(problem, optimizer, config, task.steps, None if fresh else cache_root() / "tuning")
        save_outcome(unit.path, kept, about)
    forget_programs()
    return kept.seconds


def forget_programs() -> None:
    """Free the memory of what was compiled: a process does many units."""
    jax.clear_caches()


def end_with_parent() -> None:
    """End this process when the one that started it is gone, killed perhaps; it would wait for work, and race what it has, for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def start_process(counter: Any, jobs: int) -> None:
    """Settle a process on its share of the cores."""
    end_with_parent()
    with counter.get_lock():
        place = counter.value
        counter.value += 1
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        share = cores[place * len(cores) // jobs : (place + 1) * len(cores) // jobs] or cores
        os.sched_setaffinity(0, share)
    prepare()


class Eta:
    """How long is left: by what a task's other optimizers took, or by the seconds of a step that all took so far."""

    def __init__(self, config: SuiteConfig, units: Sequence[Unit], jobs: int) -> None:
        self._steps, self._left, self._jobs = [task.steps for task in config.tasks], set(units), jobs
        self._taken: dict[int, list[float]] = {}

    def done(self, unit: Unit, seconds: float) -> None:
        self._left.discard(unit)
        self._taken.setdefault(unit.index, []).append(seconds)

    def seconds(self) -> float:
        spent = sum(sum(taken) for taken in self._taken.values())
        steps = sum(self._steps[index] * len(taken) for index, taken in self._taken.items())
        return sum(self._of(unit.index, spent / max(steps, 1)) for unit in self._left) / self._jobs

    def _of(self, index: int, per_step: float) -> float:
        taken = self._taken.get(index)
        return sum(taken) / len(taken) if taken else per_step * self._steps[index]


def carry_out(config: SuiteConfig, units: Sequence[Unit], jobs: int, fresh: bool, console: Console) -> dict[Unit, str]:
    """Do all units, several at a time; those that failed, and why. Ctrl-C leaves what is done."""
    jobs = min(jobs, len(units))
    eta, began = Eta(config, units, jobs), time.monotonic()
    failed: dict[Unit, str] = {}

    def report(number: int, unit: Unit, seconds: float) -> None:
        eta.done(unit, seconds)
        left = eta.seconds()
        console.print(
            f"[{number}/{len(units)}] {unit.problem}: {unit.optimizer} in {duration(seconds)}, "
            f"{duration(time.monotonic() - began)} so far, {duration(left)} left",
            highlight=False,
            soft_wrap=True,
        )

    if jobs == 1:
        for number, unit in enumerate(units, 1):
            try:
                report(number, unit, run_unit(config, unit, fresh))
            except (ValueError, OSError, RuntimeError) as error:
                failed[unit] = str(error)
        return failed
    context = multiprocessing.get_context("spawn")  # JAX's threads do not survive a fork
    pool = concurrent.futures.ProcessPoolExecutor(
        jobs, mp_context=context, initializer=start_process, initargs=(context.Value("i", 0), jobs)
    )
    try:
        waiting = {pool.submit(run_unit, config, unit, fresh): unit for unit in units}
        for number, future in enumerate(concurrent.futures.as_completed(waiting), 1):
            unit = waiting[future]
            try:
                report(number, unit, future.result())
            except (ValueError, OSError, RuntimeError) as error:  # also where a process was killed, as for its memory
                failed[unit] = str(error)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return failed


def argument_parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("evaluate_suite.py", description=DESCRIPTION, epilog=EPILOG, formatter_class=formatter)
    which = parser.add_mutually_exclusive_group()
    scales = sorted(path.stem for path in SUITES.glob("[!_]*.py"))
    which.add_argument("--scale", choices=scales, default="small", help="a suite of configs/suite/ (default: small)")
    which.add_argument("--suite", type=Path, metavar="FILE", help="a suite of your own: a file with config = SuiteConfig(...)")
    parser.add_argument(
        "--optimizer",
        nargs="+",
        metavar="OPT",
        help="optimizers of optax by name, such as nadamw, and meta-trained ones: a shipped one's name, a run directory, a folder with a "
        "card, hf://owner/name; the suite's reference is added (default: the suite's)",
    )
    parser.add_argument("--trials", nargs="+", type=int, metavar="N", help="budgets of trials, rising (default: the suite's)")
    parser.add_argument("--seeds", type=int, metavar="K", help="initialisations of each race (default: the suite's)")
    parser.add_argument("--tasks", nargs="+", type=int, metavar="I", help="only these tasks, by their place in the suite from 0")
    parser.add_argument("--jobs", type=int, default=available_cores(), metavar="N", help="processes (default: one a core)")
    parser.add_argument("--fresh", action="store_true", help="run everything anew, whatever is kept")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: runs/suite/SCALE)")
    return parser


def load_suite(args: argparse.Namespace) -> SuiteConfig:
    """The suite with what the arguments change.

    Raises:
      ValueError: if the file has no suite, or an argument makes no sense.
    """
    path = args.suite or SUITES / f"{args.scale}.py"
    config = load_file(path)
    if not isinstance(config, SuiteConfig):
        raise ValueError(f"{path}: config is a {type(config).__name__}, not a SuiteConfig")
    changes: dict[str, Any] = {}
    if args.trials:
        changes["trials"] = tuple(args.trials)
    if args.seeds is not None:
        changes["seeds"] = args.seeds
    if args.tasks:
        unknown = sorted(set(args.tasks) - set(range(len(config.tasks))))
        if unknown:
            raise ValueError(f"--tasks: the suite has the tasks 0 to {len(config.tasks) - 1}, not {unknown}")
        changes["tasks"] = tuple(config.tasks[index] for index in dict.fromkeys(args.tasks))
    if args.optimizer:
        changes["optimizers"] = tuple(dict.fromkeys([*args.optimizer, config.reference]))
    return dataclasses.replace(config, **changes)


def result_of(config: SuiteConfig, units: Sequence[Unit], failed: Collection[Unit]) -> SuiteResult:
    """What is kept of all units but those that failed."""
    outcomes: dict[tuple[str, str], Outcome] = {}
    for unit in units:
        outcome = None if unit in failed else read_outcome(unit.path)
        if outcome is not None:
            outcomes[unit.problem, unit.optimizer] = outcome
    names = list(dict.fromkeys(unit.problem for unit in units))
    kinds = {name: task.kind for name, task in zip(names, config.tasks, strict=True)}
    steps = {name: task.steps for name, task in zip(names, config.tasks, strict=True)}
    return SuiteResult(config, kinds, steps, config.optimizers, outcomes)


def plan(config: SuiteConfig, out: Path) -> list[Unit]:
    """All units, the tasks in turn, so that aggregates can be told early; optimizers are looked up before anything is run.

    Raises:
      ValueError: if an optimizer is not known, or two tasks have one name.
    """
    for source in config.optimizers:
        if is_trained(source):
            open_trained(source)
        else:
            rival(source)
    names = [task.task.make().name for task in config.tasks]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"tasks of a suite need different names; these are given twice: {repeated}")
    return [
        Unit(index, name, source, outcome_path(out / "races", name, source))
        for index, name in enumerate(names)
        for source in config.optimizers
    ]


def main(argv: Sequence[str] | None = None) -> None:
    args = argument_parser().parse_args(argv)
    console = Console()
    try:
        if args.jobs < 1:
            raise ValueError(f"--jobs must be at least 1, got {args.jobs}")
        config = load_suite(args)
        out: Path = args.out or Path("runs") / "suite" / (args.suite.stem if args.suite else args.scale)
        if args.jobs == 1:
            prepare()
        units = plan(config, out)
        out.mkdir(parents=True, exist_ok=True)
        failed = carry_out(config, units, args.jobs, args.fresh, console)
        for unit, why in failed.items():
            console.print(f"failed: {unit.optimizer} on {unit.problem}: {why}", soft_wrap=True, style="red")
        result = result_of(config, units, failed)
        paths = write_suite(result, out)
        most = config.trials[-1]
        lines = suite_table(result.aggregates(most), config.reference, len(result.complete))
        console.print(rich_lines(lines, f"{len(result.complete)} tasks, {most} trials"))
        for path in paths:
            console.print(str(path), soft_wrap=True)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"evaluate_suite.py: {error}")
    except KeyboardInterrupt:
        sys.exit("evaluate_suite.py: interrupted; what was raced is kept, call again to go on")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
