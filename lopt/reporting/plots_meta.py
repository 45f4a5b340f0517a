"""The picture of a meta-training: meta-loss, learned scalars, meta-gradient and divergence over outer steps."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lopt.reporting.plots import COLORS, LIGHT, Look, plain_log_labels, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpecBase

SCALARS = ("alpha", "beta", "g0")  # of the paper's update rule, as metrics name them


def meta_training_figure(records: Sequence[Mapping[str, Any]], *, title: str, look: Look = LIGHT) -> "Figure":
    """How a meta-training went, over outer steps: meta-loss, learned scalars, meta-gradient and divergence.

    Panels: the meta-loss with its running mean; the scalars alpha, beta, g0, each on its own scale; the norm of the meta-gradient
    before clipping, with the particles that diverged. Scalars that no record has are left out.

    Args:
      records: the lines of metrics.jsonl, with `outer_step` and `meta_loss`, in order.
      title: of the figure.
      look: for which page.

    Raises:
      ValueError: if no record has a meta-loss.
    """
    from matplotlib.figure import Figure

    records = [record for record in records if "outer_step" in record and "meta_loss" in record]
    if not records:
        raise ValueError("there is nothing to draw: no record has both 'outer_step' and 'meta_loss'")
    steps = np.array([record["outer_step"] for record in records])

    def column(name: str) -> np.ndarray:
        return np.array([_number(record.get(name)) for record in records])

    with style(look):
        scalars = {name: values for name in SCALARS if np.isfinite(values := column(name)).any()}
        panels = 3 if scalars else 2
        figure = Figure(figsize=(3.9, 2.9 * panels) if look.narrow else (9.6, 3.0), layout="constrained")
        grid = figure.add_gridspec(*((panels, 1) if look.narrow else (1, panels)))
        loss_ax, norm_ax = figure.add_subplot(grid[0]), figure.add_subplot(grid[panels - 1])
        losses, finals = column("meta_loss"), column("final_loss")
        log = _spans(losses, 5.0)
        _draw_noisy(loss_ax, steps, losses, COLORS[0], log=log, label="mean over particles")
        if np.isfinite(finals).any():
            _draw_noisy(loss_ax, steps, finals, COLORS[2], log=log, label="at the end of inner trainings")
            loss_ax.legend(loc="best")
        loss_ax.set_title("meta-loss")
        if scalars:
            _draw_scalars(figure, grid[1].subgridspec(len(scalars), 1), steps, scalars)
        norms = column("gradient_norm")
        _draw_noisy(norm_ax, steps, norms, COLORS[2], log=True)
        norm_ax.set_title("meta-gradient norm, before clipping")
        _draw_divergence(norm_ax, steps, column("diverged"), column("capped"), look)
        for ax in figure.axes:
            ax.set_xlim(min(0, steps[0]), max(steps[-1], 1))
        loss_ax.set_xlabel("outer step")
        norm_ax.set_xlabel("outer step")
        figure.suptitle(title, x=0.01, ha="left", fontsize=10.0, fontweight="bold")
    return figure


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def _spans(values: np.ndarray, ratio: float) -> bool:
    finite = values[np.isfinite(values)]
    return bool(finite.size and finite.min() > 0 and finite.max() > ratio * finite.min())


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over the finite values among the `window` (an odd number) around each, fewer at the ends: [N] -> [N]."""
    finite = np.isfinite(values)
    kernel = np.ones(window)
    counts = np.convolve(finite, kernel)[window // 2 :][: len(values)]
    sums = np.convolve(np.where(finite, values, 0.0), kernel)[window // 2 :][: len(values)]
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _draw_scalars(figure: "Figure", grid: "GridSpecBase", steps: np.ndarray, scalars: Mapping[str, np.ndarray]) -> None:
    """One low panel for each scalar, above each other."""
    from matplotlib.ticker import MaxNLocator

    for row, (name, values) in enumerate(scalars.items()):
        ax = figure.add_subplot(grid[row, 0])
        ax.plot(steps, values, color=COLORS[3], linewidth=1.6, marker="o" if len(steps) == 1 else None)
        ax.set_ylabel(name)
        ax.yaxis.set_major_locator(MaxNLocator(3))
        ax.margins(y=0.2)
        if row == 0:
            ax.set_title("learned scalars")
        if row == len(scalars) - 1:
            ax.set_xlabel("outer step")
        else:
            ax.tick_params(labelbottom=False)


def _draw_noisy(
    ax: "Axes", steps: np.ndarray, values: np.ndarray, color: str, log: bool = False, label: str | None = None
) -> None:
    """Raw values faint, and their running mean (geometric on a log axis) over 5% of the steps on top."""
    values = np.where(np.isfinite(values), values, np.nan)
    window = 2 * (len(values) // 40) + 1
    log = log and bool(np.all(values[np.isfinite(values)] > 0))
    if log:
        ax.set_yscale("log")
        plain_log_labels(ax)
    smooth = np.exp(running_mean(np.log(values), window)) if log else running_mean(values, window)
    ax.plot(steps, values, color=color, linewidth=0.7, alpha=0.3)
    ax.plot(steps, smooth, color=color, linewidth=1.8, label=label, marker="o" if len(steps) == 1 else None)


def _draw_divergence(ax: "Axes", steps: np.ndarray, diverged: np.ndarray, capped: np.ndarray, look: Look) -> None:
    """Crosses along the bottom at the outer steps in which particles diverged, and the counts."""
    total = int(np.nansum(diverged))
    where = steps[np.nan_to_num(diverged) > 0]
    if where.size:
        height = np.full(len(where), 0.02)
        ax.plot(where, height, "x", color=COLORS[0], ms=4, transform=ax.get_xaxis_transform(), clip_on=False)
    label = f"{total} particles diverged" + " (x)" * (total > 0) + f"\n{int(np.nansum(capped))} inner losses capped"
    ax.text(
        0.98, 0.98, label, transform=ax.transAxes, ha="right", va="top", fontsize=8.0, color=COLORS[0] if total else look.grey
    )
