"""The picture of a comparison, after figure 2 of "Universal Neural Functionals": training loss, and how meta-training went.

Learned optimizers have colours of Okabe and Ito, which remain distinct to colour-blind eyes; tuned rivals by hand are dashed and grey.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lopt.comparison.results import RivalRow, entries_of, goal, mean_curve, meta_curves, rows
from lopt.comparison.words import budget_lines, captions, loss_text, speedup_text
from lopt.comparison.work import Found
from lopt.reporting.plots import by_hand_look, learned_look, loss_axis, over_seeds, style
from lopt.reporting.plots_meta import running_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCORE, META_LOSS = "held_out/score", "meta_loss"
_WIDTH, _MARGIN, _GAP = 10.5, 0.65, 0.75  # inches
_PANEL, _LINE, _ENTRY = 3.5, 0.142, 0.2  # heights: of the panels, of a line of text, of an entry of the legend
_CHARACTERS = 190  # in a line of the text below
_LABEL, _COLUMN = 125, 62  # in a line of the legend; in one of two columns


def comparison_figure(found: Found) -> "Figure":
    """Left: training loss over inner steps of the race. Right: the held-out score over outer steps, or the meta-loss where there is none.

    A line is the mean over meta-seeds, its band one standard error; where there is one meta-seed, over its racing seeds. On the right
    thin lines are the meta-seeds, a dot is the theta that was raced, a cross a meta-training that diverged. Legend and text say how
    much of the agenda is done, and by which budget.
    """
    from matplotlib.figure import Figure

    lines = rows(found)
    text = [line for one in _sentences(found) for line in textwrap.wrap(one, _CHARACTERS, subsequent_indent="   ")]
    labels = ["\n".join(textwrap.wrap(_label(found, row), _LABEL)) for row in lines]
    columns = 2 if max(map(len, labels)) <= _COLUMN else 1
    entries = math.ceil((len(lines) + 1) / columns) + sum(label.count("\n") for label in labels)
    legend = _ENTRY * entries + 0.3
    below = _LINE * len(text) + 0.15
    height = 0.85 + _PANEL + 0.55 + legend + below
    with style():
        figure = Figure(figsize=(_WIDTH, height))
        width = (_WIDTH - 2 * _MARGIN - _GAP + 0.25) / 2
        panels = [
            figure.add_axes((left / _WIDTH, (below + legend + 0.55) / height, width / _WIDTH, _PANEL / height))
            for left in (_MARGIN, _MARGIN + width + _GAP)
        ]
        handles = _draw_race(panels[0], found, dict(zip(labels, lines, strict=True)))
        _draw_meta_training(panels[1], found)
        figure.text(0.15 / _WIDTH, 1 - 0.12 / height, found.agenda.title, fontsize=12, fontweight="bold", va="top")
        figure.text(0.15 / _WIDTH, 1 - 0.37 / height, _subtitle(found), fontsize=8.5, va="top", color="#555555")
        figure.legend(
            handles=handles,
            loc="upper left",
            bbox_to_anchor=(0.1 / _WIDTH, (below + legend) / height),
            ncols=columns,
            title=f"final training loss; speed-up: {found.tuned[0].curve.name}'s steps to its final loss over the optimizer's",
            title_fontsize=8.5,
            alignment="left",
            fontsize=8.5,
        )
        figure.text(0.15 / _WIDTH, (below - 0.05) / height, "\n".join(text), fontsize=7.3, va="top", linespacing=1.35)
    return figure


def _subtitle(found: Found) -> str:
    budget, entries, planned = found.agenda.budget, entries_of(found), len(found.agenda.runs)
    total = budget.experiment.outer_steps
    unfinished = sum(not entry.state.is_over(total) for entry in entries)
    part = f"; so far {len(entries)} of {planned} runs" * (len(entries) < planned or unfinished > 0)
    part += f", {unfinished} of them unfinished" * (unfinished > 0)
    return (
        f"budget '{budget.name}': {total:,} outer steps; T = {budget.experiment.evaluation.steps:,} inner steps in the race{part}"
    )


def _sentences(found: Found) -> list[str]:
    differs = found.agenda.budget.differs
    return [*captions(found), *budget_lines(found), *(["Differs from the paper: " + " ".join(differs)] if differs else [])]


def look_of(found: Found, label: str) -> dict[str, Any]:
    """How a learned optimizer is drawn: its place among the rivals decides, whatever else is there."""
    return learned_look([rival.label for rival in found.agenda.config.rivals].index(label))


def _label(found: Found, row: RivalRow) -> str:
    label = f"{row.label}: {loss_text(row)}; {speedup_text(row)}"
    if not row.is_learned:
        return f"{row.label}: {loss_text(row)}" + ("" if row.reference else f"; {speedup_text(row)}")
    label += f" ({row.seeds} of {row.planned} seeds)" * (row.seeds < row.planned)
    total = found.agenda.budget.experiment.outer_steps
    unfinished = sum(done < total for done in row.outer_steps) - row.diverged_runs
    label += f" ({unfinished} unfinished)" * (unfinished > 0)
    return label + f" ({row.diverged_runs} of {row.seeds} meta-trainings diverged)" * (row.diverged_runs > 0)


def _draw_race(ax: "Axes", found: Found, lines: Mapping[str, RivalRow]) -> list[Any]:
    """The left panel, of rows by their label in the legend; the handles of the legend."""
    evaluation = found.agenda.budget.experiment.evaluation
    smoothing = max(1, evaluation.steps // 50)
    curves = {label: [entry.curve for entry in entries] for label, entries in found.entries.items() if entries}
    curves |= {tuned.curve.name: [tuned.curve] for tuned in found.tuned}
    handles, ranges, starts, by_hand = [], [], [], 0
    for label, row in lines.items():
        steps, mean, error = mean_curve(curves[row.label], smoothing)
        if row.is_learned:
            look = {**look_of(found, row.label), "zorder": 6}
        else:
            look = {**by_hand_look(by_hand, len(found.agenda.config.rivals)), "zorder": 5}
            by_hand += 1
        handles += ax.plot(steps, mean, label=label, **look)
        ax.fill_between(steps, mean - error, mean + error, color=look["color"], alpha=0.2, linewidth=0, zorder=2)
        ranges.append(_range(steps, mean))
        starts.append(mean[0])
    target, _ = goal(found)
    if math.isfinite(target):
        label = f"dotted line: {found.tuned[0].curve.name}'s final loss"
        handles.append(ax.axhline(target, color="#333333", linewidth=0.8, linestyle=(0, (1, 2)), zorder=1, label=label))
    loss_axis(ax, *zip(*ranges, strict=True), start=_first_finite(starts))
    ax.set_xlim(0, evaluation.steps)
    ax.set_xlabel("inner step")
    ax.set_title("training loss" if smoothing == 1 else f"training loss, mean of {smoothing} steps")
    _thousands(ax)
    return handles


def _range(steps: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """The range that is worth an axis: without the beginning, whose fall would flatten all that follows."""
    late = values[(steps >= steps[-1] / 20) & np.isfinite(values)]
    return (float(late.min()), float(late.max())) if late.size else (math.nan, math.nan)


def _first_finite(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return float(np.median(finite)) if finite else math.nan


def _draw_meta_training(ax: "Axes", found: Found) -> None:
    has_scores = any(len(meta_curves(entries, SCORE)[0]) for entries in found.entries.values())
    name = SCORE if has_scores else META_LOSS
    ranges, starts = [], []
    for label, entries in found.entries.items():
        at, values = meta_curves(entries, name)
        if not len(at):
            continue
        if name == META_LOSS:  # noisy: its running mean over 5% of the steps
            values = np.stack([np.where(np.isfinite(one), running_mean(one, 2 * (len(at) // 40) + 1), np.nan) for one in values])
        color = look_of(found, label)["color"]
        for entry, one in zip(entries, values, strict=True):
            kept = np.isfinite(one)
            if len(entries) > 1:
                ax.plot(at[kept], one[kept], color=color, linewidth=0.7, alpha=0.5, zorder=3)
            ranges.append(_range(at, one) if kept.any() else (math.nan, math.nan))
            starts += one[kept][:1].tolist()
            if name == SCORE and entry.step in at:
                ax.plot(entry.step, one[list(at).index(entry.step)], "o", color=color, ms=5, mec="white", zorder=8)
            if entry.state.diverged and kept.any():
                ax.plot(at[kept][-1], one[kept][-1], "x", color=color, ms=8, mew=2, zorder=9)
        common = np.isfinite(values).all(axis=0)  # the mean is of all runs, or it would jump where one ends
        mean, error = over_seeds(values[:, common])
        lonely = "o" if common.sum() == 1 else None
        ax.plot(at[common], mean, **look_of(found, label), marker=lonely, ms=3, zorder=6)
        ax.fill_between(at[common], mean - error, mean + error, color=color, alpha=0.2, linewidth=0, zorder=2)
    if ranges:
        loss_axis(ax, *zip(*ranges, strict=True), start=_first_finite(starts))
    ax.set_xlim(0, max([found.agenda.budget.experiment.outer_steps, 1]))
    ax.set_xlabel("outer step")
    ax.set_title("held-out loss, constant prediction = 1" if name == SCORE else "meta-loss, running mean")
    _thousands(ax)


def _thousands(ax: "Axes") -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
