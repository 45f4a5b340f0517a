"""The races of a comparison: the thetas of its runs and the tuned rivals, from the same initialisations on the same minibatches."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from lopt.comparison.config import Agenda, Run
from lopt.comparison.kept import kept_race, race_once
from lopt.comparison.state import RunState, state_of
from lopt.config import to_dict
from lopt.evaluation.evaluate import RACE, TUNE, EvaluationConfig, tuned_rival
from lopt.evaluation.race import Competitor, race
from lopt.evaluation.summary import Curve
from lopt.evaluation.tuning_cache import digest
from lopt.optimizers.momentum import LearnedOptimizer
from lopt.symmetry.spec import PyTree
from lopt.task.base import Problem
from lopt.training import checkpoint
from lopt.training.mixture import optimizer_of
from lopt.unroll import make_unroll

SEED = 0  # root of the racing and tuning seeds, the same for all runs of a comparison; meta-training never uses these keys


@dataclasses.dataclass(frozen=True)
class Entry:
    """A run that was raced.

    Attributes:
      run: of the agenda.
      state: how far it was then.
      curve: the race of its theta.
      step: the outer step that theta is of.
      which: `best` or `newest`.
      inner_steps: of an outer step, all particles counted.
      theta: what was raced.
    """

    run: Run
    state: RunState
    curve: Curve
    step: int
    which: str
    inner_steps: int
    theta: PyTree

    @property
    def parameters(self) -> int:
        """Numbers in theta."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.theta))


@dataclasses.dataclass(frozen=True)
class Tuned:
    """A tuned rival that was raced.

    Attributes:
      curve: its race.
      setting: what it was tuned to, as text; empty where its learning rate was given.
      at_edge: the best setting lies at the edge of what was tried.
    """

    curve: Curve
    setting: str = ""
    at_edge: bool = False


class Bench:
    """What races and meta-trainings of an agenda have in common, made when it is first needed: data may take long to load.

    Args:
      agenda: whose task it is.
      cache: directory of the searches that tuning made; None: none is kept.
    """

    def __init__(self, agenda: Agenda, cache: Path | None = None) -> None:
        self.agenda, self.cache = agenda, cache

    @property
    def evaluation(self) -> EvaluationConfig:
        return self.agenda.budget.experiment.evaluation

    @functools.cached_property
    def problem(self) -> Problem:
        """The task with its data."""
        made = self.agenda.budget.experiment.task.make()
        assert isinstance(made, Problem)  # a budget's experiment is on one task
        return made

    @functools.cached_property
    def data(self) -> str:
        """A digest of the data: a data set of one name may be another on another machine, as that which comes with Python is."""
        return digest(self.problem.datasets.at(0))

    @property
    def _known_data(self) -> str | None:
        """That digest where the data are loaded, as they are whenever something is trained; to draw what is there takes none."""
        return self.data if "problem" in self.__dict__ else None

    @functools.cached_property
    def optimizers(self) -> dict[str, LearnedOptimizer]:
        """By label.

        Raises:
          ValueError: naming the rival whose network is not compatible with the task.
        """
        found = {}
        for rival in self.agenda.config.rivals:
            try:
                found[rival.label] = optimizer_of(self.agenda.budget.experiment_of(rival, 0).optimizer, self.problem)
            except ValueError as error:
                raise ValueError(f"{rival.label} does not apply to {self.problem.name}: {error}") from error
        return found

    @functools.cached_property
    def inner_steps(self) -> int:
        """Of an outer step, all particles counted."""
        experiment, optimizer = self.agenda.budget.experiment, next(iter(self.optimizers.values()))
        unroll = make_unroll(experiment.unroll, self.problem, optimizer)
        return experiment.estimator.make(unroll).inner_steps

    def _race(self, competitor: Competitor) -> Curve:
        config = self.evaluation
        key = jax.random.fold_in(jax.random.key(SEED), RACE)
        return race(
            self.problem,
            [competitor],
            key,
            steps=config.steps,
            seeds=config.seeds,
            measurements=config.measurements,
            measured_batches=config.measured_batches,
        )[0]

    def _identity(self, what: Mapping[str, Any]) -> dict[str, Any]:
        experiment, config = self.agenda.budget.experiment, self.evaluation
        fields = ("steps", "seeds", "measurements", "measured_batches")
        settings = {name: getattr(config, name) for name in fields}
        return {"task": to_dict(experiment.task), "seed": SEED, **settings, **what}

    def _theta_identity(self, run: Run, theta: Any) -> dict[str, Any]:
        return self._identity({"optimizer": to_dict(run.experiment.optimizer), "theta": digest(theta)})

    def entry(self, run: Run, *, may_race: bool = True) -> Entry | None:
        """A run's theta, raced unless its race is kept; None if it has no checkpoint, or no race and none may be run.

        Raises:
          CheckpointError: if no checkpoint of the run can be used.
        """
        state = state_of(run)
        if not state.done:
            return None
        theta, step, which = checkpoint.chosen_theta(run.directory)
        identity = self._theta_identity(run, theta)

        def compete() -> tuple[Curve, dict[str, Any]]:
            competitor = Competitor(run.label, self.optimizers[run.label].opt_fn, theta)
            return self._race(competitor), {"inner_steps": self.inner_steps, "data": self.data}

        kept = run.kept_race, identity
        found = race_once(*kept, compete, self._known_data) if may_race else kept_race(*kept, self._known_data)
        if found is None:
            return None
        return Entry(run, state, found[0], step, which, found[1]["inner_steps"], theta)

    def is_raced(self, run: Run) -> bool:
        """Whether the race of a run's theta, as it is now, is kept."""
        return bool(state_of(run).done) and self.entry(run, may_race=False) is not None

    def _tuned_file(self, name: str) -> tuple[Path, dict[str, Any]]:
        search = {field.name: getattr(self.evaluation, field.name) for field in dataclasses.fields(EvaluationConfig)}
        search = {key: search[key] for key in search if key not in ("cost_turns", "baselines")}
        search["momenta"] = search["momenta"] or (0.9,)  # as races that are kept name it
        identity = self._identity({"baseline": name, "search": search})
        return self.agenda.races / f"tuned-{name.replace(':', '-')}.npz", identity

    def is_tuned(self, name: str) -> bool:
        """Whether the race of a tuned rival is kept."""
        return kept_race(*self._tuned_file(name), self._known_data) is not None

    def tuned(self, name: str, *, reference: bool) -> Tuned:
        """A rival by hand, tuned and raced unless its race is kept.

        Args:
          name: as `lopt.evaluation.baselines.find_baseline` takes it.
          reference: its final loss is the target of speed-ups.

        Raises:
          TuningError: if it diverged at every learning rate.
        """

        def compete() -> tuple[Curve, dict[str, Any]]:
            key = jax.random.fold_in(jax.random.key(SEED), TUNE)
            rival, found = tuned_rival(self.problem, name, self.evaluation, key, self.cache, reference=reference)
            about = {"setting": "" if found is None else str(found.best), "at_edge": found is not None and found.at_edge}
            return self._race(rival), {**about, "data": self.data}

        curve, about = race_once(*self._tuned_file(name), compete, self._known_data)
        return Tuned(dataclasses.replace(curve, reference=reference), about["setting"], about["at_edge"])
