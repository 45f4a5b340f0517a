"""What a comparison is: rivals by label, and budgets, each an experiment whose update network is swapped."""

import dataclasses
import re
from pathlib import Path

from lopt.networks.update import NetworkConfig
from lopt.optimizers.momentum import LearnedMomentumConfig, LearnedSGDMConfig, OptimizerConfig
from lopt.task.families import MixtureConfig
from lopt.training.trainer import MetaTrainConfig

_LABEL = re.compile(r"[A-Za-z0-9_]+")


@dataclasses.dataclass(frozen=True)
class Rival:
    """A learned optimizer of the comparison."""

    label: str
    """How tables, the picture and run directories call it: letters, digits and underscores."""
    network: NetworkConfig | None = None
    """Its update network; None: none, which leaves SGD with momentum, its step size and decay meta-trained alike."""

    def __post_init__(self) -> None:
        if not _LABEL.fullmatch(self.label):
            raise ValueError(f"rival.label is part of a directory's name: letters, digits and underscores, got {self.label!r}")

    def optimizer(self, like: OptimizerConfig) -> OptimizerConfig:
        """Its config, with the scalars that another optimizer starts from."""
        if not isinstance(like, LearnedMomentumConfig):
            raise ValueError(f"a budget's experiment gives the start of beta: LearnedMomentumConfig, got {type(like).__name__}")
        if self.network is None:
            return LearnedSGDMConfig(alpha=like.alpha, g0=like.g0)
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
        return dataclasses.replace(self.experiment, optimizer=rival.optimizer(self.experiment.optimizer), seed=seed)


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
    """The first is the paper's."""
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
    """One meta-training of a plan."""

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
class Plan:
    """All that a comparison does at one budget.

    Attributes:
      task: the short name of the comparison, as in `mlp`.
      config: the comparison.
      budget: one of its budgets.
      runs: the meta-trainings in the order of work: seed 0 of every rival, then seed 1, so that a part of the plan is a comparison.
      races: directory of the kept races.
    """

    task: str
    config: ComparisonConfig
    budget: Budget
    runs: tuple[Run, ...]
    races: Path

    @property
    def name(self) -> str:
        return f"{self.task}-{self.budget.name}"

    @property
    def title(self) -> str:
        return self.budget.title or self.config.title


def make_plan(task: str, config: ComparisonConfig, budget: str, runs_dir: str | Path) -> Plan:
    """The plan of a comparison at a budget; its runs are `RUNS_DIR/TASK-BUDGET-LABEL-SEED`.

    Args:
      task: the short name of the comparison.
      config: the comparison.
      budget: the name of one of its budgets.
      runs_dir: below which all runs lie.

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
    return Plan(task, config, chosen, runs, races)
