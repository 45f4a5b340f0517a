"""A fair race: frozen optimizers and tuned baselines on unseen initialisations, with the same batches for all.

For each seed every competitor starts from the same params and sees the same minibatches, so that differences are those of the
optimizers. The baselines are tuned (`lopt.evaluation.tuning`) on seeds of their own; neither these nor the racing seeds are among those of
the meta-training. Figures are defined in `lopt.evaluation.summary`, costs in `lopt.evaluation.costs`.
"""

import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lopt.evaluation.baselines import SCHEDULES, Baseline, ScheduleName, find_baseline
from lopt.evaluation.costs import Cost, measure_costs
from lopt.evaluation.race import Competitor, check_names, race
from lopt.evaluation.rollout import OptFn, grid_fn, on_cpu, seed_keys
from lopt.evaluation.summary import Curve, Row, final_losses, summarize, target_loss
from lopt.evaluation.tuning import Search, Setting, Tuning, TuningError, tune
from lopt.evaluation.tuning_cache import cached, identity
from lopt.symmetry.spec import PyTree
from lopt.task.base import Datasets, Problem

# Folded into the root key, far beyond any outer step, so that no key of a race is one of the meta-training's.
RACE, TUNE = (zlib.crc32(name) for name in (b"lopt.evaluation.evaluate.race", b"lopt.evaluation.evaluate.tune"))


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How a meta-trained optimizer is judged."""

    steps: int = 2000
    """Inner steps T of each training, of the tuning too."""
    seeds: int = 10
    """Initialisations K that every competitor is raced from."""
    tuning_seeds: int = 4
    """Initialisations that each learning rate of a baseline is tried on; disjoint from those of the race."""
    points_per_decade: int = 2
    """Density of the learning-rate grids: 2 tries 0.01, 0.032, 0.1, ..."""
    max_extensions: int = 4
    """How often a grid whose best lies at an edge is extended beyond it."""
    refinements: int = 1
    """How often the distance between learning rates (and momenta) is halved around the best of the grid."""
    momenta: tuple[float, ...] | None = None
    """Momenta that SGDM is tried with, None: 0.9; several make a grid with the learning rates, which is extended and refined too."""
    schedules: tuple[ScheduleName, ...] = ("constant",)
    """Schedules that the rivals' learning rates are tried with: constant, cosine (to zero), warmup_cosine (a tenth of the steps)."""
    window: int = 100
    """Steps over which final losses are averaged; T / 10 where that is shorter."""
    measurements: int = 12
    """Times at which a race looks at held-out data: as many on a logarithmic scale, and as many on a linear one."""
    measured_batches: int = 4
    """Held-out batches that it then looks at, the same at all times."""
    cost_turns: int = 11
    """Turns in which the optimizers' own steps are timed beside Adam's; 0: they are not."""
    baselines: tuple[str, ...] = ("adam", "sgdm")
    """Rivals by name (adam, sgdm, any optimizer of optax) with tuned learning rates, as `adamw:1e-3` with a given one, or as
    `adam@constant` tuned with this schedule alone; the first one's final loss is the target that the others are timed to."""

    def __post_init__(self) -> None:
        for name in ("steps", "seeds", "tuning_seeds", "points_per_decade", "window", "measurements", "measured_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"evaluation.{name} must be at least 1, got {getattr(self, name)}")
        if self.points_per_decade > 10:  # closer rungs are no longer different in two digits
            raise ValueError(f"evaluation.points_per_decade must be at most 10, got {self.points_per_decade}")
        for name in ("max_extensions", "refinements", "cost_turns"):
            if getattr(self, name) < 0:
                raise ValueError(f"evaluation.{name} must not be negative, got {getattr(self, name)}")
        if self.momenta is not None and (
            not self.momenta or len(set(self.momenta)) < len(self.momenta) or not all(0 <= m < 1 for m in self.momenta)
        ):
            raise ValueError(f"evaluation.momenta must be different numbers from 0 to below 1, got {self.momenta}")
        if not self.schedules or len(set(self.schedules)) < len(self.schedules) or not set(self.schedules) <= {*SCHEDULES}:
            raise ValueError(f"evaluation.schedules must be some of {', '.join(SCHEDULES)}, got {self.schedules}")
        if not self.baselines:
            raise ValueError("evaluation.baselines is empty; the first of them sets the loss to reach, such as ('adam', 'sgdm')")
        labels = [find_baseline(name).label for name in self.baselines]
        repeated = sorted({label for label in labels if labels.count(label) > 1})
        if repeated:
            raise ValueError(f"evaluation.baselines names these twice: {', '.join(repeated)}")

    @property
    def smoothing(self) -> int:
        """The window in force: `window`, or T / 10 if that is shorter."""
        return min(self.window, max(1, self.steps // 10))

    def search(self, baseline: Baseline) -> Search:
        """Where a baseline is tuned: what it has no momentum or schedule for is left out."""
        return Search(
            baseline.low,
            baseline.high,
            self.points_per_decade,
            momenta=(self.momenta or ()) if baseline.has_momentum else (),
            schedules=(baseline.schedules or self.schedules) if baseline.has_schedule else ("constant",),
            refinements=self.refinements,
            max_extensions=self.max_extensions,
        )


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """All that a race found.

    Attributes:
      task: name of the task.
      config: how it was run.
      curves: one a competitor, in the table's order.
      tunings: title of a baseline -> the search for its learning rate, where that was not given.
      seed: root of all keys.
      costs: name of a competitor -> what its steps cost; empty where that was not measured.
    """

    task: str
    config: EvaluationConfig
    curves: tuple[Curve, ...]
    tunings: Mapping[str, Tuning]
    seed: int
    costs: Mapping[str, Cost] = dataclasses.field(default_factory=lambda: MappingProxyType({}))

    @property
    def rows(self) -> list[Row]:
        """The rows of the summary table."""
        return summarize(self.curves, self.config.smoothing)

    @property
    def target(self) -> float:
        """The loss to reach: the reference's mean final training loss."""
        return target_loss(next(curve for curve in self.curves if curve.reference), self.config.smoothing)


def tune_baseline(problem: Problem, name: str, config: EvaluationConfig, key: jax.Array, cache: Path | None = None) -> Tuning:
    """Search a baseline's learning rate, and what else the config names, by its mean final training loss over the tuning seeds.

    Args:
      problem: what is trained: a task, or a family of which each seed draws a task.
      name: of a baseline, as `lopt.evaluation.baselines.find_baseline` takes it.
      config: steps, tuning seeds, density of the grid.
      key: of the tuning seeds.
      cache: directory of the searches that were made; None: none is kept. One that is found there costs no training.

    Raises:
      ValueError: if there is no such baseline.
      TuningError: if it diverged at every learning rate.
    """
    baseline = find_baseline(name)
    return tune_rates(
        problem,
        baseline.title,
        baseline.opt_fn,
        config.search(baseline),
        key,
        steps=config.steps,
        seeds=config.tuning_seeds,
        window=config.smoothing,
        cache=cache,
    )


def tuned_rival(
    problem: Problem,
    name: str,
    config: EvaluationConfig,
    key: jax.Array,
    cache: Path | None = None,
    *,
    reference: bool = False,
    progress: Callable[[str], None] = lambda message: None,
) -> tuple[Competitor, Tuning | None]:
    """A baseline that is ready to be raced, and its tuning; None where its learning rate is given. Arguments as of `tune_baseline`."""
    baseline, found = find_baseline(name), None
    theta: PyTree = jnp.float32(baseline.learning_rate or 0.0)
    if baseline.learning_rate is None:
        progress(f"tuning the learning rate of {baseline.title}: {config.tuning_seeds} seeds x {config.steps} steps each")
        found = tune_baseline(problem, name, config, key, cache)
        if found.cached:
            progress(f"{baseline.title} was tuned before: {found.best}")
        theta = config.search(baseline).theta(found.best, config.steps)
    return Competitor(baseline.label, baseline.opt_fn, theta, reference), found


def tune_rates(
    problem: Problem,
    title: str,
    opt_fn: OptFn,
    search: Search,
    key: jax.Array,
    *,
    steps: int,
    seeds: int,
    window: int,
    theta: PyTree = None,
    cache: Path | None = None,
) -> Tuning:
    """Search the learning rate, and what else the search names, of any optimizer that has one.

    Args:
      problem: what is trained.
      title: of the optimizer.
      opt_fn: of a learning rate or a `Hyper`; of a pair of theta and that, where theta is given.
      search: where to look.
      key: of the tuning seeds.
      steps: T.
      seeds: K, tuning seeds.
      window: steps over which final losses are averaged.
      theta: meta-parameters of a learned optimizer.
      cache: as of `tune_baseline`.

    Raises:
      TuningError: if it diverged at every learning rate.
    """
    inputs = seed_keys(key, seeds), problem.datasets.at(0)
    score = _Scores(problem, opt_fn, search, steps, window, theta, inputs)
    about = identity(
        title,
        problem.name,
        search,
        score.program.as_text(),
        inputs if theta is None else (*inputs, theta),
        steps=steps,
        seeds=seeds,
        window=window,
    )
    try:
        return cached(cache, about, lambda: tune(score, search))
    except TuningError as error:
        raise TuningError(f"tuning {title} on {problem.name}: {error}") from error


class _Scores:
    """`score(settings) -> scores`, by one program: on CPU for one setting, on accelerators for as many as the grid has."""

    def __init__(
        self,
        problem: Problem,
        opt_fn: OptFn,
        search: Search,
        steps: int,
        window: int,
        theta: PyTree,
        inputs: tuple[jax.Array, Datasets],
    ) -> None:
        grid = search.grid()
        self._lanes, self._window, self._inputs = 1 if on_cpu() else len(grid), window, inputs

        def of_setting(setting: Setting) -> PyTree:
            hyper = search.theta(setting, steps)
            return hyper if theta is None else (theta, hyper)

        self._theta: Callable[[Sequence[Setting]], Any] = lambda settings: jax.tree.map(
            lambda *leaves: jnp.stack(leaves), *map(of_setting, settings)
        )
        self.program = grid_fn(problem, opt_fn, steps).lower(self._theta(grid[: self._lanes]), *inputs)
        self._compiled: jax.stages.Compiled | None = None  # not before it is known to be needed

    def __call__(self, settings: Sequence[Setting]) -> list[float]:
        if self._compiled is None:
            self._compiled = self.program.compile()
        scores = []
        for first in range(0, len(settings), self._lanes):
            group = list(settings[first : first + self._lanes])
            padded = group + group[-1:] * (self._lanes - len(group))
            losses = np.asarray(self._compiled(self._theta(padded), *self._inputs))[: len(group)]
            scores += [self._of_one(one) for one in losses]
        return scores

    def _of_one(self, losses: np.ndarray) -> float:
        return float(final_losses(losses, self._window).mean()) if np.isfinite(losses).all() else np.inf


def evaluate(
    problem: Problem,
    competitors: Sequence[Competitor],
    config: EvaluationConfig,
    seed: int,
    progress: Callable[[str], None] = lambda message: None,
    cache: Path | None = None,
) -> Evaluation:
    """Tune the baselines on the problem, and race the competitors against them from the same weights and on the same batches.

    Args:
      problem: what is trained: a task, or a family of which each seed draws a task.
      competitors: the learned optimizers, whose theta is no longer trained.
      config: steps, seeds, baselines.
      seed: root of all keys; that of the meta-training will do, the keys differ.
      progress: called with a line of text before each stage.
      cache: directory of the searches that were made; None: every baseline is tuned anew.

    Raises:
      ValueError: if two competitors have one name.
      TuningError: naming the baseline that diverged at every learning rate.
    """
    check_names([*(competitor.name for competitor in competitors), *(find_baseline(name).label for name in config.baselines)])
    root = jax.random.key(seed)
    tunings: dict[str, Tuning] = {}
    rivals = []
    for position, name in enumerate(config.baselines):
        rival, found = tuned_rival(
            problem, name, config, jax.random.fold_in(root, TUNE), cache, reference=position == 0, progress=progress
        )
        rivals.append(rival)
        if found is not None:
            tunings[find_baseline(name).title] = found
    everyone = [*competitors, *rivals]
    curves = race(
        problem,
        everyone,
        jax.random.fold_in(root, RACE),
        steps=config.steps,
        seeds=config.seeds,
        measurements=config.measurements,
        measured_batches=config.measured_batches,
        progress=progress,
    )
    costs: Mapping[str, Cost] = {}
    if config.cost_turns:
        progress(f"timing the optimizers' own steps beside Adam's: {config.cost_turns} turns")
        costs = measure_costs(problem, {c.name: (c.opt_fn, c.theta) for c in everyone}, turns=config.cost_turns)
    return Evaluation(problem.name, config, curves, tunings, seed, costs)
