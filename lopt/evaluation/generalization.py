"""How far an optimizer carries: races beyond its horizon, on other widths, data, batch sizes and scales of the initial weights.

Each condition changes one thing about the task that was trained on. In each the rivals are tuned anew, and all figures are relative to
the first of them there: what is asked is whether the optimizer is still worth using, not whether the task has become harder.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lopt.evaluation.evaluate import Evaluation, EvaluationConfig, evaluate
from lopt.evaluation.race import Competitor
from lopt.evaluation.summary import Row
from lopt.evaluation.tuning import TuningError
from lopt.task.base import Problem, TaskConfig
from lopt.task.families import FamilyConfig, vary_init_scale

AS_TRAINED = "as trained"
KINDS = ("horizon", "width", "data", "batch", "init")
WIDTHS = ("hidden", "channels", "width", "head_width", "mlp")  # fields of tasks' configs that are widths
HORIZON, FACTORS, SCALES = 5, (0.5, 2.0), (1 / 3, 3.0)
_BATCHES = (0.25, 4.0)


@dataclasses.dataclass(frozen=True)
class Condition:
    """One thing changed.

    Attributes:
      name: how tables call it.
      kind: of `KINDS`, or `AS_TRAINED`.
      task: config of the task.
      horizon: factor on the steps.
      init_scale: factor on the initial weights.
    """

    name: str
    kind: str
    task: TaskConfig
    horizon: int = 1
    init_scale: float = 1.0

    def make(self) -> Problem:
        """The problem, with its data."""
        problem = self.task.make()
        return problem if self.init_scale == 1.0 else vary_init_scale(problem, (self.init_scale, self.init_scale))


def conditions(task: TaskConfig, kinds: Sequence[str] = KINDS, datasets: Sequence[str] = ()) -> list[Condition]:
    """What to race under: one thing changed at a time, of those that the task's config has fields for.

    The task as it is, five times the steps, half and twice the widths, other data, a quarter and four times the batch size, a third and
    three times the initial weights.

    Args:
      task: what was trained on.
      kinds: which of `KINDS`.
      datasets: names of other data, for a task whose config has a field `dataset`.

    Raises:
      ValueError: for an unknown kind.
    """
    if unknown := sorted(set(kinds) - set(KINDS)):
        raise ValueError(f"there is no condition '{unknown[0]}'; there are {', '.join(KINDS)}")
    inner: Any = _plain(task)
    fields = {field.name for field in dataclasses.fields(inner)}
    found = [Condition(AS_TRAINED, AS_TRAINED, task)]
    if "horizon" in kinds:
        found.append(Condition(f"{HORIZON} x steps", "horizon", task, horizon=HORIZON))
    if "width" in kinds and (widths := sorted(fields & set(WIDTHS))):
        for factor in FACTORS:
            wider = {name: _times(getattr(inner, name), factor) for name in widths}
            found.append(Condition(f"width x {factor:g}", "width", _changed(task, **wider)))
    if "data" in kinds and "dataset" in fields:
        found += [Condition(name, "data", _changed(task, dataset=name)) for name in datasets if name != inner.dataset]
    if "batch" in kinds and "batch_size" in fields:
        sizes = {_times(inner.batch_size, factor) for factor in _BATCHES} - {inner.batch_size}
        found += [Condition(f"batch {size}", "batch", _changed(task, batch_size=size)) for size in sorted(sizes)]
    if "init" in kinds:
        found += [Condition(f"init x {scale:.2g}", "init", task, init_scale=scale) for scale in SCALES]
    return found


def dataset_of(task: TaskConfig) -> str:
    """The name of the data of a task, or of the tasks of a family; "" where its config has no field `dataset`."""
    return getattr(_plain(task), "dataset", "")


def _plain(task: TaskConfig) -> TaskConfig:
    return _plain(task.task) if isinstance(task, FamilyConfig) else task


def _changed(task: TaskConfig, **changes: Any) -> TaskConfig:
    if isinstance(task, FamilyConfig):
        return dataclasses.replace(task, task=_changed(task.task, **changes))
    return dataclasses.replace(task, **changes)


def _times(value: Any, factor: float) -> Any:
    return tuple(_times(item, factor) for item in value) if isinstance(value, tuple) else max(1, round(value * factor))


@dataclasses.dataclass(frozen=True)
class Generalization:
    """All that the races under the conditions found.

    Attributes:
      task: name of the task as it was trained on.
      config: of the races; the steps of a condition are these times its horizon.
      seed: root of all keys.
      conditions: in the order of the table.
      found: name of a condition -> its race, or why there was none.
    """

    task: str
    config: EvaluationConfig
    seed: int
    conditions: tuple[Condition, ...]
    found: Mapping[str, Evaluation | str]

    @property
    def races(self) -> dict[str, Evaluation]:
        """The conditions in which there was a race."""
        return {name: found for name, found in self.found.items() if isinstance(found, Evaluation)}

    @property
    def optimizers(self) -> list[str]:
        """Names of the competitors, the reference last."""
        rows = {row.name: row.reference for race in self.races.values() for row in race.rows}
        return sorted(rows, key=rows.__getitem__)  # stable: otherwise in their order

    def row(self, optimizer: str, condition: str) -> Row | None:
        """The figures of an optimizer under a condition; None where it was not raced."""
        race = self.races.get(condition)
        return next((row for row in race.rows if row.name == optimizer), None) if race else None


def relative_loss(race: Evaluation, row: Row) -> float:
    """An optimizer's final training loss over the reference's; infinite if a seed diverged, NaN if that is no positive number."""
    if row.diverged:
        return math.inf
    return row.final_loss.mean / race.target if race.target > 0 else math.nan


Setup = Callable[[Problem], Sequence[Competitor]]


def stages(chosen: Sequence[Condition], competitors: int, config: EvaluationConfig) -> float:
    """How much there is to do, in inner trainings of one horizon: about, as a search may be extended or have been made before."""
    return sum(condition.horizon for condition in chosen) * (competitors + 2 * len(config.baselines))


def generalize(
    task: TaskConfig,
    setup: Setup,
    config: EvaluationConfig,
    seed: int,
    chosen: Sequence[Condition],
    *,
    progress: Callable[[str, float], None] = lambda message, weight: None,
    cache: Path | None = None,
) -> Generalization:
    """Race under every condition.

    A condition under which the optimizer cannot be used, as theta is not compatible with its weights, or no data are found, or no rival
    trains, is kept with the reason, and the others go on.

    Args:
      task: what was trained on.
      setup: `setup(problem) -> competitors`, the optimizers that are raced against the baselines.
      config: of the races.
      seed: root of all keys.
      chosen: from `conditions`.
      progress: called before each stage with a line of text and the part that the stage has in `stages`.
      cache: directory of the searches that were made.
    """
    found: dict[str, Evaluation | str] = {}
    name = _plain(task).__class__.__name__
    for condition in chosen:
        steps = dataclasses.replace(
            config, steps=config.steps * condition.horizon, measurements=1, measured_batches=1, cost_turns=0
        )

        def said(message: str, weight: float | None = None, condition: Condition = condition) -> None:
            starts = message.startswith(("racing", "tuning"))
            progress(f"{condition.name}: {message}", (condition.horizon if starts else 0.0) if weight is None else weight)

        try:
            problem = condition.make()
            competitors = list(setup(problem))
        except ValueError as error:  # no such data, or a theta that is not compatible
            found[condition.name] = _one_line(error)
            said("no race", (len(config.baselines) * 2 + 1) * condition.horizon)
            continue
        name = problem.name if condition.kind == AS_TRAINED else name
        try:
            found[condition.name] = evaluate(problem, competitors, steps, seed, said, cache)
        except TuningError as error:
            found[condition.name] = _one_line(error)
    return Generalization(name, config, seed, tuple(chosen), found)


def _one_line(error: Exception) -> str:
    """A message as a cell of a table can hold it."""
    return " ".join(str(error).split())


def generalization_table(result: Generalization) -> list[list[str]]:
    """The lines of the table, its header first: speed-up, and final loss over the reference's, by optimizer and condition."""
    reference = next((row.name for race in result.races.values() for row in race.rows if row.reference), "the reference")
    lines = [["condition", "optimizer", "final training loss", f"loss / {reference}'s", "speed-up", "diverged"]]
    for condition in result.conditions:
        found = result.found[condition.name]
        if isinstance(found, str):
            lines.append([condition.name, f"none: {found}", "", "", "", ""])
            continue
        for row in found.rows:
            ratio = relative_loss(found, row)
            lines.append(
                [
                    condition.name,
                    row.name,
                    str(row.final_loss),
                    "diverged" if math.isinf(ratio) else f"{ratio:.2f}",
                    speedup_text(row),
                    f"{row.diverged} of {row.seeds}" if row.diverged else "0",
                ]
            )
    return lines


def speedup_text(row: Row) -> str:
    """`2.10x`, `never`, or `1.50x (3 of 4)` where some seeds never reach the loss."""
    if not row.steps.count:
        return "never"
    some = f" ({row.steps.count} of {row.seeds})" if row.steps.count < row.seeds else ""
    return f"{row.speedup.mean:.2f}x{some}"
