"""What a comparison is: rivals by label, and budgets, each an experiment whose update network is swapped."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lopt.config import ConfigError, differences, load_run
from lopt.config.names import name_of
from lopt.config.tree import shown
from lopt.networks.update import NetworkConfig
from lopt.optimizers.momentum import LearnedSGDMConfig, MomentumRule, OptimizerConfig
from lopt.task.families import MixtureConfig
from lopt.task.named import GivenTaskConfig
from lopt.training.trainer import MetaTrainConfig

_LABEL = re.compile(r"[A-Za-z0-9_]+")


@dataclasses.dataclass(frozen=True)
class Rival:
    """A learned optimizer of the comparison."""

    label: str
    """How tables, the picture and run directories call it: letters, digits and underscores."""
    network: NetworkConfig | None = None
    """Its update network, in the budget's optimizer; None: none, which leaves SGD with momentum, its step size and decay meta-trained."""
    optimizer: OptimizerConfig | None = None
    """The whole of it, in place of the budget's optimizer and of `network`."""

    def __post_init__(self) -> None:
        if not _LABEL.fullmatch(self.label):
            raise ValueError(f"rival.label is part of a directory's name: letters, digits and underscores, got {self.label!r}")
        if self.network is not None and self.optimizer is not None:
            raise ValueError(
                f"rival '{self.label}' is given a network and an optimizer; the network belongs into the optimizer then"
            )

    def optimizer_like(self, like: OptimizerConfig) -> OptimizerConfig:
        """Its config, with what a budget's optimizer has besides its network, unless it has its own."""
        if self.optimizer is not None:
            return self.optimizer
        rule = getattr(like.parts, "rule", None)
        if self.network is None and isinstance(rule, MomentumRule):
            return LearnedSGDMConfig(alpha=rule.alpha, g0=rule.g0)
        if self.network is None or "network" not in {field.name for field in dataclasses.fields(like)}:
            raise ValueError(
                f"rival '{self.label}' takes its scalars or its network from the budget's optimizer, which is {type(like).__name__}: "
                "give the rival an optimizer of its own"
            )
        return dataclasses.replace(like, network=self.network)


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much is spent, on what."""

    name: str
    """By which a command line asks for it."""
    experiment: MetaTrainConfig
    """Of every rival and seed, but for the update network and the seed."""
    seeds: int
    """Meta-trainings of each rival, from seeds 0, 1, ..."""
    differs: tuple[str, ...] = ()
    """What differs from the paper, a sentence each; they go into the report and the picture."""
    title: str = ""
    """The task, for the picture, where it is another than the comparison's."""

    def __post_init__(self) -> None:
        if not _LABEL.fullmatch(self.name):
            raise ValueError(f"budget.name is part of a directory's name: letters, digits and underscores, got {self.name!r}")
        if self.seeds < 1:
            raise ValueError(f"budget.seeds must be at least 1, got {self.seeds}")
        if isinstance(self.experiment.task, MixtureConfig):
            raise ValueError("a comparison is made on one task; budget.experiment.task is a mixture")

    def experiment_of(self, rival: Rival, seed: int) -> MetaTrainConfig:
        """The meta-training of one rival from one seed."""
        return dataclasses.replace(self.experiment, optimizer=rival.optimizer_like(self.experiment.optimizer), seed=seed)


@dataclasses.dataclass(frozen=True)
class Published:
    """A figure that others printed for a rival: how many times fewer steps than tuned Adam it needs."""

    label: str
    speedup: float
    error: float


@dataclasses.dataclass(frozen=True)
class ComparisonConfig:
    """Learned optimizers that are compared on one task."""

    title: str
    """The task, for the picture."""
    rivals: tuple[Rival, ...]
    """In the order in which a seed's meta-trainings are made."""
    budgets: tuple[Budget, ...]
    """Of which one is carried out: the first, unless another is asked for."""
    published: tuple[Published, ...] = ()
    """Speed-ups that others found for the same rivals, to stand beside ours."""
    source: str = ""
    """Where they are printed."""

    def __post_init__(self) -> None:
        for what, names in (
            ("rivals", [rival.label for rival in self.rivals]),
            ("budgets", [budget.name for budget in self.budgets]),
        ):
            if not names or len(set(names)) < len(names):
                raise ValueError(f"comparison.{what} must be one or more, of different names, got {names}")
        unknown = [figure.label for figure in self.published if figure.label not in {rival.label for rival in self.rivals}]
        if unknown:
            raise ValueError(f"comparison.published names {unknown}, which are no rivals")

    def budget(self, name: str) -> Budget:
        """The budget of a name.

        Raises:
          ValueError: listing those that there are.
        """
        found = {budget.name: budget for budget in self.budgets}
        if name not in found:
            raise ValueError(f"no budget '{name}'; the budgets are {', '.join(found)}")
        return found[name]


@dataclasses.dataclass(frozen=True)
class Run:
    """One meta-training of an agenda."""

    label: str
    seed: int
    experiment: MetaTrainConfig
    directory: Path
    """Of the run, as `meta_train` writes it."""
    kept_race: Path
    """The file that keeps its race."""

    @property
    def name(self) -> str:
        return f"{self.label}, seed {self.seed}"


@dataclasses.dataclass(frozen=True)
class Agenda:
    """All that a comparison does at one budget.

    Attributes:
      task: the short name of the comparison, as in `mlp`.
      config: the comparison.
      budget: one of its budgets.
      runs: the meta-trainings in the order of work: seed 0 of every rival, then seed 1, so that a part of the agenda is a comparison.
      races: directory of the kept races.
      command: that carries it out, for the report.
      picture: the file of the picture.
    """

    task: str
    config: ComparisonConfig
    budget: Budget
    runs: tuple[Run, ...]
    races: Path
    command: str
    picture: str = "figure2.png"

    @property
    def name(self) -> str:
        return f"{self.task}-{self.budget.name}"

    @property
    def title(self) -> str:
        return self.budget.title or self.config.title


def make_agenda(
    task: str,
    config: ComparisonConfig,
    budget: str,
    runs_dir: str | Path,
    *,
    command: str | None = None,
    picture: str = "figure2.png",
) -> Agenda:
    """The agenda of a comparison at a budget; its runs are `RUNS_DIR/TASK-BUDGET-LABEL-SEED`.

    Args:
      task: the short name of the comparison.
      config: the comparison.
      budget: the name of one of its budgets.
      runs_dir: below which all runs lie.
      command: that carries it out, for the report; None: that of the paper's figure.
      picture: the file of the picture.

    Raises:
      ValueError: if there is no such budget.
    """
    chosen, runs_dir = config.budget(budget), Path(runs_dir)
    races = runs_dir / f"{task}-{budget}-races"
    runs = tuple(
        Run(
            rival.label,
            seed,
            chosen.experiment_of(rival, seed),
            runs_dir / f"{task}-{budget}-{rival.label}-{seed}",
            races / f"{rival.label}-{seed}.npz",
        )
        for seed in range(chosen.seeds)
        for rival in config.rivals
    )
    again = f"python scripts/paper_tables.py figure2 --task {task} --budget {budget}" if command is None else command
    return Agenda(task, config, chosen, runs, races, again, picture)


def agenda_of_runs(
    directories: Sequence[str | Path], races: str | Path, command: str, changes: Mapping[str, Any] | None = None
) -> Agenda:
    """Runs that are there already as a comparison: those that differ by their seed alone are meta-seeds of one rival.

    A rival is called as its directories are, without the seed at the end: `runs/unf-0` and `runs/unf-1` are `unf`.

    Args:
      directories: of the runs, all on one task.
      races: directory in which races are kept.
      command: that makes the comparison, for the report.
      changes: fields of the first run's `evaluation` to replace; it is that of the race.

    Raises:
      ConfigError: if a directory is not a run's, naming the two runs whose tasks differ, or those that are the same run.
    """
    paths, races = [Path(directory) for directory in directories], Path(races)
    experiments = {path: load_run(path) for path in paths}
    first = experiments[paths[0]]
    groups: list[list[Path]] = []
    for path in paths:
        other = differences(first.task, experiments[path].task)
        if other:
            listing = "; ".join(
                f"{field or 'task'} is {shown(old)} in one, {shown(new)} in the other" for field, old, new in other
            )
            raise ConfigError(f"{paths[0]} and {path} were meta-trained on different tasks, so they cannot be pooled: {listing}")
        own = next((group for group in groups if _same_but_for_seed(experiments[group[0]], experiments[path])), None)
        if own is None:
            groups.append([path])
            continue
        twin = next((one for one in own if experiments[one].seed == experiments[path].seed), None)
        if twin is not None:
            raise ConfigError(
                f"{twin} and {path} are one meta-training with one seed, {experiments[path].seed}: give one of them"
            )
        own.append(path)
    labels = _labels([group[0].name for group in groups])
    rivals = tuple(Rival(label, optimizer=experiments[group[0]].optimizer) for label, group in zip(labels, groups, strict=True))
    evaluation = dataclasses.replace(first.evaluation, **(changes or {}))
    experiment = dataclasses.replace(
        first, evaluation=evaluation, outer_steps=max(one.outer_steps for one in experiments.values())
    )
    name = first.task.name if isinstance(first.task, GivenTaskConfig) else _task_name(first.task)
    budget = Budget("runs", experiment, max(map(len, groups)))
    runs = tuple(
        Run(label, experiments[path].seed, experiments[path], path, races / f"{label}-{experiments[path].seed}.npz")
        for label, group in zip(labels, groups, strict=True)
        for path in group
    )
    return Agenda(name, ComparisonConfig(name, rivals, (budget,)), budget, runs, races, command, "comparison.png")


def _task_name(task: Any) -> str:
    place = f"{type(task).__module__}:{type(task).__qualname__}"
    return getattr(task, "function", "") or name_of(place) or place


def _same_but_for_seed(one: MetaTrainConfig, other: MetaTrainConfig) -> bool:
    return {path for path, _, _ in differences(one, other, operational=False)} <= {"seed"}


def _labels(names: Sequence[str]) -> list[str]:
    """Names without the seed at their end, made fit for labels, and told apart by a number where two are alike."""
    found: list[str] = []
    for name in names:
        label = re.sub(r"\W+", "_", re.sub(r"[-_.]?\d+$", "", name)).strip("_") or "run"
        found.append(label if label not in found else f"{label}_{len(found) + 1}")
    return found
