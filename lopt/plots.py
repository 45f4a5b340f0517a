"""Pictures of a race and of a meta-training, as matplotlib figures.

Figures are made without pyplot: no backend is chosen, no window opened, no global setting changed. Colours are those of Okabe and
Ito, which remain distinct to colour-blind eyes; lines differ in dash as well, for print without colour.
"""

import contextlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lopt.summary import Curve, Estimate, final_losses, steps_to_reach, target_loss, trailing_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpecBase

# In the order of the competitors. The first, the one that the picture is about, is drawn heavier and on top.
COLORS = ("#D55E00", "#7F7F7F", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", (0, (5, 1.5)), "-", (0, (1, 1)), (0, (3, 1, 1, 1)), "-", (0, (5, 1.5)))
SCALARS = ("alpha", "beta", "g0")  # of the paper's update rule, as metrics name them
_GREY = "#555555"

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "xtick.minor.size": 0.0,
    "ytick.minor.size": 0.0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Our settings on matplotlib's defaults, whatever the user's are, which come back afterwards."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def png(figure: "Figure", dpi: int = 160) -> bytes:
    """A figure as the bytes of a PNG file."""
    with style(), io.BytesIO() as buffer:
        figure.savefig(buffer, format="png", dpi=dpi)
        return buffer.getvalue()


def curves_figure(curves: Sequence[Curve], *, task: str, window: int) -> "Figure":
    """Training loss over inner steps: mean over seeds and a band of one standard error.

    Losses are averaged over a short trailing window (2% of T) to be readable. A seed leaves the mean where it diverges, with a
    cross at that step; the legend counts such seeds. The dashed line is the reference's final loss. A dot on it marks the mean
    number of steps after which a competitor has reached it, as the table has it: by the mean over `window` steps, hence later
    than the drawn curve.

    Args:
      curves: the one that the picture is about first; one of them the reference.
      task: name, for the title.
      window: steps that final losses are averaged over.
    """
    from matplotlib.figure import Figure

    seeds, T = curves[0].losses.shape
    smoothing = max(1, T // 50)
    reference = next(curve for curve in curves if curve.reference)
    target = target_loss(reference, window)
    with style():
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        ax = figure.add_subplot()
        ranges = [_draw_curve(ax, index, curve, target, window, smoothing) for index, curve in enumerate(curves)]
        if math.isfinite(target):
            label = f"{reference.name}'s final loss; dots: reached"
            ax.axhline(target, color=_GREY, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1, label=label)
        start = Estimate.of(np.concatenate([curve.losses[:, 0] for curve in curves])).mean
        _loss_axis(ax, *zip(*ranges, strict=True), start=start)
        for index, curve in enumerate(curves):
            _mark_divergence(ax, index, curve, smoothing)
        ax.set_xlim(0, T)
        ax.set_xlabel("inner step")
        ax.set_ylabel("training loss" if smoothing == 1 else f"training loss (mean of {smoothing} steps)")
        ax.set_title(f"{task}: T = {T} steps, {seeds} seed{'s' * (seeds > 1)}" + ", band: one standard error" * (seeds > 1))
        ax.legend(loc="best", title="final training loss, speed-up", title_fontsize=8.5, alignment="left")
    return figure


def _draw_curve(ax: "Axes", index: int, curve: Curve, target: float, window: int, smoothing: int) -> tuple[float, float]:
    """Draw one competitor; the range of its mean."""
    losses = trailing_mean(curve.losses, smoothing)
    losses = np.where(np.isfinite(losses), losses, np.nan)
    steps = np.arange(losses.shape[1]) + smoothing
    alive = np.isfinite(losses).sum(axis=0)
    mean = np.where(alive > 0, np.nansum(losses, axis=0) / np.maximum(alive, 1), np.nan)
    variance = np.nansum(np.square(losses - mean), axis=0) / np.maximum(alive - 1, 1)
    error = np.where(alive > 1, np.sqrt(variance / np.maximum(alive, 1)), np.nan)

    color, dash = COLORS[index % len(COLORS)], DASHES[index % len(DASHES)]
    label = f"{curve.name}: {Estimate.of(final_losses(curve.losses, window)[~curve.diverged])}"
    if curve.diverged.any():
        label = f"{curve.name}: nan ({curve.diverged.sum()} of {len(curve.diverged)} seeds diverged)"
    reached = steps_to_reach(curve.losses, target, window)
    dot = Estimate.of(reached)
    if dot.count and not curve.reference:
        label += f", {Estimate.of(curve.losses.shape[1] / reached).mean:.2f}x"
        label += f" ({dot.count} of {len(reached)} seeds)" * (dot.count < len(reached))
        ax.errorbar(dot.mean, target, xerr=np.nan_to_num(dot.error), fmt="o", ms=5, color=color, mec="white", zorder=9)
    ax.plot(steps, mean, color=color, linestyle=dash, linewidth=2.2 if index == 0 else 1.5, label=label, zorder=8 - index)
    ax.fill_between(steps, mean - error, mean + error, color=color, alpha=0.18, linewidth=0, zorder=2)
    finite = mean[np.isfinite(mean)]
    return (float(finite.min()), float(finite.max())) if finite.size else (math.nan, math.nan)


def _mark_divergence(ax: "Axes", index: int, curve: Curve, smoothing: int) -> None:
    """A cross where each diverged seed was last in the mean, at the frame's edge if that is beyond it."""
    losses = trailing_mean(curve.losses, smoothing)
    for seed in losses[curve.diverged]:
        bad = np.flatnonzero(~np.isfinite(seed))
        last = (bad[0] if bad.size else len(seed)) - 1
        if last >= 0:
            height = np.clip(seed[last], *ax.get_ylim())
            ax.plot(last + smoothing, height, "x", color=COLORS[index % len(COLORS)], ms=7, mew=1.8, zorder=10, clip_on=False)


def _loss_axis(ax: "Axes", bottoms: Sequence[float], tops: Sequence[float], start: float) -> None:
    """A log axis where losses span much; a loss that explodes leaves the frame rather than flattening all others."""
    bottom, top = np.nanmin([*bottoms, np.inf]), np.nanmax([*tops, -np.inf])
    ceiling = 3.0 * start
    if math.isfinite(ceiling) and top > ceiling:
        top = ceiling
    if not math.isfinite(bottom) or not math.isfinite(top) or bottom >= top:
        return
    if bottom > 0 and top / bottom > 3.0:
        ax.set_yscale("log")
        ax.set_ylim(bottom / 1.25, top * 1.15)
        plain_log_labels(ax)
    else:
        margin = 0.05 * (top - bottom)
        ax.set_ylim(bottom - margin, top + margin)


def plain_log_labels(ax: "Axes") -> None:
    """Ticks as 0.5 rather than 5 x 10^-1, at 1, 2, 5 of each decade where the axis spans few."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def meta_training_figure(records: Sequence[Mapping[str, Any]], *, title: str) -> "Figure":
    """How a meta-training went, over outer steps: meta-loss, learned scalars, meta-gradient and divergence.

    Panels: the meta-loss with its running mean; the scalars alpha, beta, g0, each on its own scale; the norm of the meta-gradient
    before clipping, with the particles that diverged. Scalars that no record has are left out.

    Args:
      records: the lines of metrics.jsonl, with `outer_step` and `meta_loss`, in order.
      title: of the figure.

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

    with style():
        scalars = {name: values for name in SCALARS if np.isfinite(values := column(name)).any()}
        figure = Figure(figsize=(9.6, 3.0), layout="constrained")
        grid = figure.add_gridspec(1, 3 if scalars else 2)
        loss_ax, norm_ax = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, -1])
        losses, finals = column("meta_loss"), column("final_loss")
        log = _spans(losses, 5.0)
        _draw_noisy(loss_ax, steps, losses, COLORS[0], log=log, label="mean over particles")
        if np.isfinite(finals).any():
            _draw_noisy(loss_ax, steps, finals, COLORS[2], log=log, label="at the end of inner trainings")
            loss_ax.legend(loc="best")
        loss_ax.set_title("meta-loss")
        if scalars:
            _draw_scalars(figure, grid[0, 1].subgridspec(len(scalars), 1), steps, scalars)
        norms = column("gradient_norm")
        _draw_noisy(norm_ax, steps, norms, COLORS[2], log=True)
        norm_ax.set_title("meta-gradient norm, before clipping")
        _draw_divergence(norm_ax, steps, column("diverged"), column("capped"))
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


def _draw_divergence(ax: "Axes", steps: np.ndarray, diverged: np.ndarray, capped: np.ndarray) -> None:
    """Crosses along the bottom at the outer steps in which particles diverged, and the counts."""
    total = int(np.nansum(diverged))
    where = steps[np.nan_to_num(diverged) > 0]
    if where.size:
        height = np.full(len(where), 0.02)
        ax.plot(where, height, "x", color=COLORS[0], ms=4, transform=ax.get_xaxis_transform(), clip_on=False)
    label = f"{total} particles diverged" + " (x)" * (total > 0) + f"\n{int(np.nansum(capped))} inner losses capped"
    ax.text(0.98, 0.98, label, transform=ax.transAxes, ha="right", va="top", fontsize=8.0, color=COLORS[0] if total else _GREY)
