"""A suite: many tasks that no optimizer was meta-trained on, and what is done for one optimizer on one of them.

Every optimizer has the same number of trials of its learning rate on every task, and is then raced at the best of its first, of its
first four and of all of them, from the same initialisations and on the same batches as all others. What a race found is a file, so that
a suite goes on where it was interrupted, may be run by several processes, and has an optimizer added without the others being run again.
"""

import dataclasses
import hashlib
import importlib.metadata
import io
import json
import time
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lopt.config import to_dict, write_atomically
from lopt.evaluation.aggregates import Aggregate, aggregate
from lopt.evaluation.baselines import SCHEDULES, Hyper, Schedule, ScheduleName, find_baseline
from lopt.evaluation.evaluate import RACE, TUNE, tune_rates
from lopt.evaluation.race import Competitor, race
from lopt.evaluation.rollout import OptFn
from lopt.evaluation.summary import Curve, Goal, final_losses
from lopt.evaluation.tuning import Search, Setting, TuningError
from lopt.evaluation.tuning_cache import digest
from lopt.symmetry.spec import PyTree
from lopt.task.base import Problem, TaskConfig

_FORMAT = 1
_MEASURED_BATCHES = 16


@dataclasses.dataclass(frozen=True)
class SuiteTask:
    """One task of a suite."""

    kind: str
    """What it is an example of, such as `CNN`; for the table."""
    task: TaskConfig
    """What is trained."""
    steps: int
    """T, inner steps of every training."""


@dataclasses.dataclass(frozen=True)
class SuiteConfig:
    """A benchmark of optimizers on many tasks: which tasks, and how every optimizer is tuned and raced on each of them."""

    tasks: tuple[SuiteTask, ...]
    """The tasks, none of which an optimizer that is judged was meta-trained on."""
    trials: tuple[int, ...] = (1, 4, 16)
    """Budgets: learning rates that every optimizer may try on every task; results are given for each."""
    seeds: int = 3
    """Initialisations K that every optimizer is raced from."""
    tuning_seeds: int = 1
    """Initialisations that each learning rate is tried on; disjoint from those of the race."""
    schedule: ScheduleName = "warmup_cosine"
    """Of every learning rate that the user gives."""
    window: int = 100
    """Steps over which final losses are averaged; T / 10 where that is shorter."""
    optimizers: tuple[str, ...] = ("nadamw", "muon", "adam", "sgdm")
    """Rivals by name, as of `lopt.evaluation.baselines`."""
    reference: str = "nadamw"
    """The one that the others are compared with, at the same budget."""
    seed: int = 0
    """Root of all random numbers."""

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("suite.tasks is empty")
        if not self.trials or self.trials[0] < 1 or list(self.trials) != sorted(set(self.trials)):
            raise ValueError(f"suite.trials must be rising numbers from 1, got {self.trials}")
        for name in ("seeds", "tuning_seeds", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"suite.{name} must be at least 1, got {getattr(self, name)}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"suite.schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        if self.reference not in self.optimizers:
            raise ValueError(f"suite.reference '{self.reference}' must be one of its optimizers, {', '.join(self.optimizers)}")
        for task in self.tasks:
            if task.steps < 1:
                raise ValueError(f"suite.tasks: {task.kind} has {task.steps} steps; it needs at least 1")


@dataclasses.dataclass(frozen=True)
class Entrant:
    """An optimizer on one problem.

    Attributes:
      name: how tables and figures call it.
      opt_fn: `opt_fn((theta, hyper)) -> optax transform`, of a `Hyper`; it leaves out what it has no use for.
      theta: its meta-parameters; `()` for one by hand.
      start: the learning rate of its first trial; None: it has none that the user gives, and so needs no trials.
    """

    name: str
    opt_fn: OptFn
    theta: PyTree
    start: float | None


def rival(name: str) -> Entrant:
    """An optimizer by hand, whatever the problem.

    Raises:
      ValueError: if there is none of that name, or it was given with a learning rate or a schedule.
    """
    baseline = find_baseline(name)
    if baseline.learning_rate is not None:
        raise ValueError(f"'{name}': in a suite every optimizer is tuned; leave the learning rate out")
    if baseline.schedules is not None:
        raise ValueError(f"'{name}': in a suite every optimizer has the suite's schedule; leave the @ out")

    def opt_fn(given: tuple[PyTree, Hyper]) -> optax.GradientTransformationExtraArgs:
        return baseline.opt_fn(given[1] if baseline.has_schedule else given[1]._replace(schedule=None))

    return Entrant(name, opt_fn, (), baseline.start)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one optimizer came to on one task.

    Attributes:
      task: the problem's name.
      optimizer: its name.
      trials: the budgets.
      settings: what it was raced at, one for each budget.
      losses: [budgets, K, T] float32, as of `Curve`.
      held_out: [budgets, K], the loss on held-out batches after T.
      seconds_per_step: wall time of the races over the steps.
      weights: numbers in the params.
      seconds: that all of it took, compilation included.
    """

    task: str
    optimizer: str
    trials: tuple[int, ...]
    settings: tuple[str, ...]
    losses: np.ndarray
    held_out: np.ndarray
    seconds_per_step: float
    weights: int
    seconds: float


def compete(problem: Problem, entrant: Entrant, config: SuiteConfig, steps: int, cache: Path | None = None) -> Outcome:
    """Tune and race an optimizer on a task.

    A budget at whose every learning rate it diverges is raced at the first of them.

    Args:
      problem: what is trained.
      entrant: made for it.
      config: how.
      steps: T.
      cache: directory of the searches that were made; None: none is kept.
    """
    began = time.monotonic()
    root, window = jax.random.key(config.seed), smoothing(config, steps)
    tried: dict[int, Setting]
    if entrant.start is None:
        tried = dict.fromkeys(config.trials, Setting(0.0, schedule=config.schedule))
    else:
        search = Search.from_start(entrant.start, config.trials[-1], config.schedule)
        first = search.grid()[0]
        try:
            found = tune_rates(
                problem,
                entrant.name,
                _scheduled(entrant.opt_fn, config, steps),
                search,
                jax.random.fold_in(root, TUNE),
                steps=steps,
                seeds=config.tuning_seeds,
                window=window,
                theta=entrant.theta,
                cache=cache,
            )
            tried = {trials: found.best_of(trials) for trials in config.trials}
        except TuningError as error:
            warnings.warn(f"{error}; it is raced at {first.learning_rate:g}", stacklevel=2)
            tried = dict.fromkeys(config.trials, first)
    chosen = list(dict.fromkeys(tried.values()))
    competitors = [
        Competitor(str(setting), entrant.opt_fn, (entrant.theta, _hyper(setting, config, steps))) for setting in chosen
    ]
    curves = race(
        problem,
        competitors,
        jax.random.fold_in(root, RACE),
        steps=steps,
        seeds=config.seeds,
        measured_batches=_MEASURED_BATCHES,
        whole_test=False,
    )
    of_setting = dict(zip(chosen, curves, strict=True))
    raced = [of_setting[tried[trials]] for trials in config.trials]
    return Outcome(
        task=problem.name,
        optimizer=entrant.name,
        trials=config.trials,
        settings=tuple("" if entrant.start is None else f"{tried[trials].learning_rate:g}" for trials in config.trials),
        losses=np.stack([curve.losses for curve in raced]).astype(np.float32),
        held_out=np.stack([curve.held_out["loss"][:, -1] for curve in raced]),
        seconds_per_step=float(np.mean([curve.seconds_per_step for curve in curves])),
        weights=sum(leaf.size for leaf in jax.tree.leaves(problem.param_shapes())),
        seconds=time.monotonic() - began,
    )


def smoothing(config: SuiteConfig, steps: int) -> int:
    """Steps over which final losses are averaged: the window, or T / 10 if that is shorter."""
    return min(config.window, max(1, steps // 10))


def _hyper(setting: Setting, config: SuiteConfig, steps: int) -> Hyper:
    warmup, decay = SCHEDULES[config.schedule]
    return Hyper(jnp.float32(setting.learning_rate), None, Schedule(jnp.float32(warmup), jnp.float32(decay), jnp.float32(steps)))


def _scheduled(opt_fn: OptFn, config: SuiteConfig, steps: int) -> OptFn:
    """For a search, which gives a plain learning rate where the schedule is constant."""

    def of_rate(given: tuple[PyTree, Any]) -> optax.GradientTransformation:
        theta, hyper = given
        if isinstance(hyper, Hyper):
            return opt_fn(given)
        return opt_fn((theta, Hyper(hyper, None, _hyper(Setting(0.0), config, steps).schedule)))

    return of_rate


def identity(config: SuiteConfig, task: SuiteTask, about_optimizer: Any, theta: PyTree = ()) -> str:
    """A digest of all that an outcome depends on but the code of this package.

    Args:
      config: of the suite; its other tasks and optimizers make no difference.
      task: the task.
      about_optimizer: what it is, as JSON can hold it.
      theta: its meta-parameters.
    """
    how = {name: getattr(config, name) for name in ("trials", "seeds", "tuning_seeds", "schedule", "window", "seed")}
    versions = {name: importlib.metadata.version(name) for name in ("jax", "optax")}
    about = {"format": _FORMAT, "task": to_dict(task.task), "steps": task.steps, "how": how, "versions": versions}
    about |= {"optimizer": about_optimizer, "theta": digest(jax.tree.map(jnp.asarray, theta))}
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def save_outcome(path: Path, outcome: Outcome, about: str) -> None:
    """Write an outcome, atomically, with the digest of what it depends on; directories are made."""
    fields = {name: value for name, value in dataclasses.asdict(outcome).items() if not isinstance(value, np.ndarray)}
    content = io.BytesIO()
    header = np.array(json.dumps({"about": about, **fields}))
    np.savez_compressed(content, header=header, losses=outcome.losses, held_out=outcome.held_out)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getvalue())


def read_outcome(path: Path, about: str | None = None) -> Outcome | None:
    """Read an outcome; None where there is none of what `about` is the digest of (of anything, if None).

    Warns:
      UserWarning: if the file is damaged, which counts as none.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            header = json.loads(str(stored["header"]))
            losses, held_out = stored["losses"], stored["held_out"]
        if header.pop("about") != about and about is not None:
            return None
        header |= {name: tuple(header[name]) for name in ("trials", "settings")}
        return Outcome(**header, losses=losses, held_out=held_out)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        warnings.warn(f"{path} is damaged and counts as missing: {error}", stacklevel=2)
        return None


def outcome_path(directory: Path, problem: str, optimizer: str) -> Path:
    """Where an outcome is kept. Of an optimizer that is called by a path, the name is its last part and a digest of the whole."""
    name = optimizer
    if "/" in optimizer:
        name = f"{optimizer.rstrip('/').rsplit('/', 1)[-1]}-{hashlib.sha256(optimizer.encode()).hexdigest()[:8]}"
    return directory / problem.replace("/", "_") / f"{name}.npz"


@dataclasses.dataclass(frozen=True)
class SuiteResult:
    """All outcomes of a suite.

    Attributes:
      config: of the suite.
      kinds: name of a problem -> its kind.
      steps: name of a problem -> T.
      optimizers: names, in the order of the tables.
      outcomes: (problem, optimizer) -> outcome; some may be missing.
    """

    config: SuiteConfig
    kinds: dict[str, str]
    steps: dict[str, int]
    optimizers: tuple[str, ...]
    outcomes: dict[tuple[str, str], Outcome]

    @property
    def complete(self) -> list[str]:
        """The problems that every optimizer was raced on: those that aggregates are of."""
        return [problem for problem in self.kinds if all((problem, name) in self.outcomes for name in self.optimizers)]

    def curve(self, problem: str, optimizer: str, trials: int) -> Curve:
        """The inner trainings at a budget."""
        outcome = self.outcomes[problem, optimizer]
        losses = outcome.losses[outcome.trials.index(trials)]
        return Curve(optimizer, losses, {}, outcome.seconds_per_step, reference=optimizer == self.config.reference)

    def losses(self, optimizer: str, trials: int, problems: Sequence[str] | None = None) -> np.ndarray:
        """Final training losses [I, K] on the problems, by default the complete ones; NaN where a run diverged."""
        found = []
        for problem in self.complete if problems is None else problems:
            curve = self.curve(problem, optimizer, trials)
            final = final_losses(curve.losses, smoothing(self.config, self.steps[problem]))
            found.append(np.where(curve.diverged, np.nan, final))
        return np.stack(found)

    def held_out(self, optimizer: str, trials: int) -> np.ndarray:
        """Losses on held-out batches [I, K] on the complete problems; NaN where a run diverged."""
        outcomes = [self.outcomes[problem, optimizer] for problem in self.complete]
        found = np.stack([outcome.held_out[outcome.trials.index(trials)] for outcome in outcomes])
        return np.where(np.isnan(self.losses(optimizer, trials)), np.nan, found)

    def speedups(self, optimizer: str, trials: int) -> np.ndarray:
        """The reference's steps to its own final losses over those of the optimizer, [I, K]; NaN for never."""
        found = []
        for problem in self.complete:
            reference = self.curve(problem, self.config.reference, trials)
            goal = Goal.of(reference, smoothing(self.config, self.steps[problem]))
            found.append(goal.speedups(self.curve(problem, optimizer, trials)))
        return np.stack(found)

    def aggregates(self, trials: int) -> list[Aggregate]:
        """The figures of all optimizers at a budget, over the complete problems.

        Raises:
          ValueError: if there is no problem that every optimizer was raced on.
        """
        if not self.complete:
            raise ValueError("there is no task yet that every optimizer was raced on")
        names = self.optimizers
        return aggregate(
            {name: self.losses(name, trials) for name in names},
            {name: self.held_out(name, trials) for name in names},
            {name: self.speedups(name, trials) for name in names},
            {name: np.array([self.outcomes[p, name].seconds_per_step for p in self.complete]) for name in names},
            self.config.reference,
        )
