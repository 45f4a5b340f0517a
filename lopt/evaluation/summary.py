"""What a race comes to: figures with standard errors, from loss curves over seeds, and the tables that show them.

Final training loss of a seed: the mean of its last `window` minibatch losses. Steps to a loss: the first number of steps after which the
mean of the last `window` minibatch losses is at most that loss.

A speed-up compares within a seed, where the reference has had the same weights and batches: the steps that it took to its own final loss
there, over those of the optimizer to the same loss. So the reference itself, or whatever trains as it does, has 1 exactly. Counted to the
mean of the reference's final losses it would not: seeds differ in how low they get, and those that get lower than the mean would be there
before T.
"""

import dataclasses
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lopt.runtime.text import markdown_text, terminal_text

if TYPE_CHECKING:
    from rich.table import Table


@dataclasses.dataclass(frozen=True)
class Curve:
    """One competitor's inner trainings.

    Attributes:
      name: how tables and figures call it.
      losses: [K, T], K seeds, T steps: the loss of the minibatch whose gradient step t takes, before the step.
      test: metric -> [K], on the whole test split after step T.
      seconds_per_step: wall time of all trainings over K * T, without compilation.
      reference: its final loss is what the others are timed to, seed for seed.
      at: [M], the numbers of steps after which held-out data were looked at; 0 is before the first.
      held_out: metric -> [K, M], on held-out batches at those steps.
    """

    name: str
    losses: np.ndarray
    test: Mapping[str, np.ndarray]
    seconds_per_step: float
    reference: bool = False
    at: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    held_out: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.losses.ndim != 2:
            raise ValueError(f"the losses of '{self.name}' have shape {self.losses.shape}, not [seeds, steps]")
        for metric, values in self.test.items():
            if values.shape != self.losses.shape[:1]:
                raise ValueError(f"test {metric} of '{self.name}' has shape {values.shape}, not [{len(self.losses)} seeds]")
        for metric, values in self.held_out.items():
            if values.shape != (len(self.losses), len(self.at)):
                raise ValueError(
                    f"held-out {metric} of '{self.name}' has shape {values.shape}, not [{len(self.losses)} seeds, {len(self.at)} steps]"
                )

    @property
    def diverged(self) -> np.ndarray:
        """Which seeds diverged, bool [K]: a loss was not finite, during the training or on the test split after it."""
        bad = np.any(~np.isfinite(self.losses), axis=1)
        return bad | ~np.isfinite(self.test["loss"]) if "loss" in self.test else bad


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its standard error; NaN where there are too few of them.

    Attributes:
      mean: over the finite values.
      error: their sample standard deviation over the root of their number.
      count: how many values were finite.
    """

    mean: float
    error: float
    count: int

    @classmethod
    def of(cls, values: np.ndarray) -> "Estimate":
        """The estimate from one value a seed, [K]; values that are not finite are left out and not counted."""
        finite = np.asarray(values, np.float64)[np.isfinite(values)]
        mean = float(finite.mean()) if finite.size else math.nan
        error = float(finite.std(ddof=1) / math.sqrt(finite.size)) if finite.size > 1 else math.nan
        return cls(mean, error, finite.size)

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "nan"
        if math.isnan(self.error) or self.error == 0.0:
            return f"{self.mean:.4g}"
        # Two significant digits of the error, and the mean to the same place.
        if not 1e-5 <= abs(self.mean) < 1e6:
            return f"{self.mean:.2e} ± {self.error:.0e}"
        places = max(0, 1 - math.floor(math.log10(self.error)))
        return f"{self.mean:.{places}f} ± {self.error:.{places}f}"


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
      name: the competitor.
      seeds: K.
      diverged: how many of them diverged.
      final_loss: final training loss, over the seeds that did not diverge.
      test: metric -> its estimate over those seeds.
      steps: steps to the reference's final loss in the same seed, over the seeds that reach it.
      speedup: the reference's steps to it over these, over the same seeds.
      seconds_per_step: wall time per inner step.
      reference: this row sets the loss to reach; its speed-up is 1.
    """

    name: str
    seeds: int
    diverged: int
    final_loss: Estimate
    test: Mapping[str, Estimate]
    steps: Estimate
    speedup: Estimate
    seconds_per_step: float
    reference: bool


def trailing_mean(losses: np.ndarray, window: int) -> np.ndarray:
    """Mean over the last `window` steps: [K, T] -> [K, T - window + 1], whose column i is the mean after i + window steps.

    Each window is summed by itself, so that a value that is not finite spoils only the windows it is in.
    """
    if not 1 <= window <= losses.shape[1]:
        raise ValueError(f"window must be from 1 to the {losses.shape[1]} steps of the curves, got {window}")
    with np.errstate(invalid="ignore"):  # inf - inf inside a window is NaN, which is what it should be
        return np.lib.stride_tricks.sliding_window_view(np.asarray(losses, np.float64), window, axis=1).mean(axis=-1)


def final_losses(losses: np.ndarray, window: int) -> np.ndarray:
    """Mean of each seed's last `window` losses, [K, T] -> [K]."""
    return trailing_mean(losses[:, -window:], min(window, losses.shape[1]))[:, -1]


def steps_to_reach(losses: np.ndarray, target: float | np.ndarray, window: int) -> np.ndarray:
    """Steps each seed takes to a loss: the first n >= window with mean(losses[n - window : n]) <= target, NaN for never.

    Args:
      losses: [K, T].
      target: the loss to reach, one or [K]; NaN is never reached.
      window: steps averaged.

    Returns:
      [K] float; at least `window`.

    Example:
      >>> steps_to_reach(np.array([[4.0, 2.0, 0.0, 0.0], [4.0, 4.0, 4.0, 4.0]]), target=1.0, window=2)
      array([ 3., nan])
    """
    reached = trailing_mean(losses, window) <= np.asarray(target)[..., None]
    return np.where(reached.any(axis=1), reached.argmax(axis=1) + float(window), np.nan)


class Goal(NamedTuple):
    """What speed-ups are counted by, seed for seed.

    Attributes:
      losses: [K], the final losses of the reference; NaN where it diverged, so that nothing gets there.
      steps: [K], those that it takes to them: T, or less where it has been there before.
      window: steps averaged.
    """

    losses: np.ndarray
    steps: np.ndarray
    window: int

    @classmethod
    def of(cls, reference: Curve, window: int) -> "Goal":
        """The goal that a reference sets.

        Example:
          >>> Goal.of(Curve("Adam", np.array([[4.0, 1.0, 3.0, 2.0], [4.0, 3.0, 3.0, 1.0]]), {}, 0.0), window=1).steps
          array([2., 4.])
        """
        losses = np.where(reference.diverged, np.nan, trailing_mean(reference.losses, window)[:, -1])
        return cls(losses, steps_to_reach(reference.losses, losses, window), window)

    def steps_of(self, curve: Curve) -> np.ndarray:
        """[K], the steps that an optimizer takes to the loss of the same seed; NaN for never."""
        return steps_to_reach(curve.losses, self.losses, self.window)

    def speedups(self, curve: Curve) -> np.ndarray:
        """[K], the reference's steps over those of an optimizer; NaN for never."""
        return self.steps / self.steps_of(curve)


def summarize(curves: Sequence[Curve], window: int) -> list[Row]:
    """The table's rows, in the order of the curves.

    Args:
      curves: one of them the reference; all with the same number of steps.
      window: steps over which losses are averaged.

    Raises:
      ValueError: if not exactly one curve is the reference.
    """
    references = [curve for curve in curves if curve.reference]
    if len(references) != 1:
        raise ValueError(f"exactly one competitor sets the target loss, got {[curve.name for curve in references]}")
    goal = Goal.of(references[0], window)
    return [_row(curve, goal) for curve in curves]


def target_loss(reference: Curve, window: int) -> float:
    """Mean final training loss of the reference over its seeds that did not diverge; NaN if all did. Pictures draw a line there."""
    return Estimate.of(final_losses(reference.losses, window)[~reference.diverged]).mean


def _row(curve: Curve, goal: Goal) -> Row:
    kept = ~curve.diverged
    return Row(
        name=curve.name,
        seeds=len(curve.losses),
        diverged=int(curve.diverged.sum()),
        final_loss=Estimate.of(final_losses(curve.losses, goal.window)[kept]),
        test={name: Estimate.of(values[kept]) for name, values in curve.test.items()},
        steps=Estimate.of(goal.steps_of(curve)),
        speedup=Estimate.of(goal.speedups(curve)),
        seconds_per_step=curve.seconds_per_step,
        reference=curve.reference,
    )


_NAME = 16  # characters of a name that a narrow table keeps on a line
Cell = tuple[str, ...]  # parts that a wide table sets side by side and a narrow one above each other


def race_table(rows: Sequence[Row]) -> list[list[Cell]]:
    """The lines of the table, its header first.

    Every metric of the test split has a column, but the test loss only where there is no other. A diverged seed is never hidden:
    it is counted in its own column, and a mean that leaves it out begins with `nan`.
    """
    reference = next(row.name for row in rows if row.reference)
    metrics = [name for name in rows[0].test if name != "loss"] or list(rows[0].test)
    header: list[Cell] = [("optimizer",), ("final", "training", "loss"), *(("test", *name.split("_")) for name in metrics)]
    header += [("steps to", f"{reference}'s", "final loss"), ("speed-up",), ("diverged",), ("ms /", "step")]
    return [header, *(_cells(row, metrics) for row in rows)]


def _cells(row: Row, metrics: Sequence[str]) -> list[Cell]:
    def over_seeds(estimate: Estimate) -> Cell:
        if not row.diverged:
            return (str(estimate),)
        return ("nan", "(others:", f"{estimate})") if estimate.count else ("nan",)

    missed = row.seeds - row.steps.count
    never = ("never", f"({missed} of {row.seeds})")
    if row.reference:
        steps, speedup = (str(row.steps), "(target)"), ("1",)
    elif not row.steps.count:
        steps, speedup = never, ("-",)
    else:
        steps = (f"{row.steps},", *never) if missed else (str(row.steps),)
        speedup = (str(row.speedup), f"({row.steps.count} of {row.seeds})") if missed else (str(row.speedup),)
    tests = [over_seeds(row.test[name]) for name in metrics]
    diverged = f"{row.diverged} of {row.seeds}" if row.diverged else "0"
    return [(row.name,), over_seeds(row.final_loss), *tests, steps, speedup, (diverged,), (f"{1e3 * row.seconds_per_step:.2g}",)]


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, its header first: numbers to the right, the first column to the left. Empty without lines."""
    if not lines:
        return ""
    header, *rest = (" | ".join(map(markdown_text, line)) for line in lines)
    return "\n".join(f"| {line} |" for line in (header, " | ".join(["---", *["---:"] * (len(lines[0]) - 1)]), *rest))


def bullets(lines: Sequence[str]) -> str:
    """A list in Markdown, its lines broken at 130 characters."""
    lines = [markdown_text(line).replace("\\|", "|") for line in lines]  # a bar is one outside of tables
    wrapped = (textwrap.fill(x, 130, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False) for x in lines)
    return "\n".join(wrapped)  # a line that ends with a hyphen would be shown with a space behind it


def markdown_table(rows: Sequence[Row]) -> str:
    """The rows of an evaluation (`Evaluation.rows`) as a table in Markdown."""
    return markdown([[" ".join(cell) for cell in line] for line in race_table(rows)])


def rich_table(rows: Sequence[Row], title: str, caption: str = "") -> "Table":
    """The table for a terminal, narrow enough for 80 columns: standard errors stand below their means."""
    from rich import box
    from rich.table import Table

    header, *lines = race_table(rows)
    caption = "\n".join(map(terminal_text, caption.split("\n")))
    view = Table(title=terminal_text(title), caption=caption, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD)
    view.padding = (0, 1, 0, 0)
    longest_word = max(len(word) for row in rows for word in row.name.split())
    longest_word = min(longest_word, _NAME)  # a path is broken: with a wider column others would be left out
    view.add_column(header[0][0], min_width=longest_word, overflow="fold")
    for name in header[1:]:
        view.add_column("\n".join(map(terminal_text, name)), justify="right", no_wrap=True)
    for line in lines:
        view.add_row(*("\n".join(map(terminal_text, cell)).replace(" ± ", "\n± ") for cell in line))
    return view
