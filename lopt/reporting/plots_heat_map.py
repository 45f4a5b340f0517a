"""The picture of how far optimizers carry: optimizers by conditions, coloured by their loss relative to the reference's."""

import math
from typing import TYPE_CHECKING

import numpy as np

from lopt.evaluation.generalization import Generalization, relative_loss, speedup_text
from lopt.reporting.plots import LIGHT, Look, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SPAN = 4.0  # ratios beyond this, or below its inverse, have the colour of this


def heat_map_figure(result: Generalization, look: Look = LIGHT) -> "Figure":
    """A cell for each optimizer and condition: the speed-up, and in colour and number the final loss over the reference's there.

    On a narrow page conditions stand below each other. The reference, whose cells are all 1, has no cells; a condition without a race is
    left grey and said to have none.

    Args:
      result: with at least one race.
      look: for which page.

    Raises:
      ValueError: if there was no race under any condition, or nothing but the reference.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    optimizers = [name for name in result.optimizers if not _is_reference(result, name)]
    if not optimizers:
        raise ValueError("there is nothing to draw: no optimizer but the reference was raced under any condition")
    conditions = [condition.name for condition in result.conditions]
    ratios, texts = np.full((len(optimizers), len(conditions)), np.nan), {}
    for i, optimizer in enumerate(optimizers):
        for j, condition in enumerate(conditions):
            row = result.row(optimizer, condition)
            if row is None:
                texts[i, j] = "none"
                continue
            ratio = relative_loss(result.races[condition], row)
            ratios[i, j] = np.clip(ratio, 1 / _SPAN, _SPAN)  # what diverged is at the end
            loss = "diverged" if math.isinf(ratio) else f"{ratio:.2f}"
            texts[i, j] = f"{speedup_text(row).replace(' (', chr(10) + '(')}\n{loss}"
    if look.narrow:
        ratios, texts = ratios.T, {(j, i): text for (i, j), text in texts.items()}
    rows, columns = (conditions, optimizers) if look.narrow else (optimizers, conditions)
    with style(look):
        size = (
            (1.5 + 1.2 * len(columns), 1.5 + 0.62 * len(rows))
            if look.narrow
            else (2.2 + 0.95 * len(columns), 1.9 + 0.75 * len(rows))
        )
        figure = Figure(figsize=(max(3.9, size[0]), size[1]), layout="constrained")
        ax = figure.add_subplot()
        ax.set_facecolor("#8A8F95")
        image = ax.imshow(ratios, cmap="RdBu_r", norm=LogNorm(1 / _SPAN, _SPAN), aspect="auto")
        for (i, j), text in texts.items():
            strong = np.isfinite(ratios[i, j]) and abs(math.log(ratios[i, j])) > 0.6 * math.log(_SPAN)
            ax.text(j, i, text, ha="center", va="center", fontsize=8.0, color="white" if strong else "black")
        ax.set_xticks(range(len(columns)), [_wrapped(name) for name in columns])
        ax.set_yticks(range(len(rows)), [_wrapped(name) for name in rows])
        ax.tick_params(length=0)
        ax.grid(False)
        for side in ax.spines.values():
            side.set_visible(False)
        ticks = [1 / _SPAN, 0.5, 1.0, 2.0, _SPAN]
        bar = figure.colorbar(image, ax=ax, location="bottom", shrink=0.9, aspect=40, ticks=ticks, pad=0.02)
        bar.ax.set_xticklabels([f"≤ {ticks[0]:g}", "0.5", "1", "2", f"≥ {_SPAN:g}"])
        bar.ax.minorticks_off()
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        bar.set_label(f"final training loss over the reference's{chr(10) if look.narrow else ' '}(below the speed-up)")
        breaks = "\n" if look.narrow else " "
        ax.set_title(f"{result.task}:{breaks}{result.config.steps} steps, {result.config.seeds} seeds")
    return figure


def _is_reference(result: Generalization, name: str) -> bool:
    return any(row.reference for race in result.races.values() for row in race.rows if row.name == name)


def _wrapped(name: str) -> str:
    words, lines = name.replace("_", " ").split(" "), [""]
    for word in words:
        if len(lines[-1]) + len(word) > 12 and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
