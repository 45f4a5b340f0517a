"""Pictures of a race and of a meta-training, as matplotlib figures.

Figures are made without pyplot: no backend is chosen, no window opened, no global setting changed. Colours are those of Okabe and
Ito, which remain distinct to colour-blind eyes; lines differ in dash as well, for print without colour.
"""

import contextlib
import dataclasses
import io
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lopt.evaluation.summary import Curve, Estimate, Goal, final_losses, target_loss, trailing_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# In the order of the competitors, the same in all pictures of a report. The first, the one that the picture is about, is drawn heavier
# and on top. The first seven are Okabe and Ito's; the others were chosen to be as far from all before as can be, to any eye.
COLORS = (
    "#D55E00",
    "#7F7F7F",
    "#0072B2",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#B2182B",
    "#6A5ACD",
    "#999933",
    "#F564E3",
    "#00BA38",
)
_SOLID, _DASHED, _DOTTED, _MIXED = "-", (0, (5, 1.5)), (0, (1, 1)), (0, (3, 1, 1, 1))
DASHES = (_SOLID, _DASHED, _SOLID, _DOTTED, _MIXED, _SOLID, _DASHED, _DOTTED, _MIXED, _SOLID, _DASHED, _DOTTED)
MOST = len(COLORS)  # competitors in one panel; more have a panel each


def line_look(index: int) -> dict[str, Any]:
    """Colour, dash and width of a competitor's line, by its place; every one of the first twelve has its own."""
    place = index % MOST
    return {"color": COLORS[place], "linestyle": DASHES[place], "linewidth": 2.2 if index == 0 else 1.5}


# Of comparisons, as the paper's picture has them: learned optimizers in the same colours in another order, the first six solid, and those
# by hand grey and dashed.
LEARNED = (*(COLORS[place] for place in (4, 2, 0, 3, 5, 6, 7, 8, 9, 10, 11)), "#8C564B")
GREYS = ("#333333", "#8C8C8C", "#5F5F5F", "#B0B0B0")
_BROKEN = ((0, (6, 2)), (0, (2, 1.5)), (0, (6, 1.5, 1, 1.5)), (0, (1, 2)))


def learned_look(place: int) -> dict[str, Any]:
    """Colour, dash and width of a learned optimizer's line in a comparison; every one of the first twelve has its own."""
    return {"color": LEARNED[place % MOST], "linestyle": "-" if place < 6 else _BROKEN[place % 4], "linewidth": 2.0}


def by_hand_look(place: int, learned: int) -> dict[str, Any]:
    """The same of a rival by hand, by its place among them: grey, and beyond four in a colour that no learned one has."""
    color = GREYS[place] if place < len(GREYS) else LEARNED[-1 - (place - len(GREYS)) % max(MOST - learned, 1)]
    return {"color": color, "linestyle": _BROKEN[place % 4], "linewidth": 1.5}


@dataclasses.dataclass(frozen=True)
class Look:
    """For which page a figure is drawn.

    Attributes:
      dark: on a dark page.
      narrow: for a phone: panels stand below each other.
    """

    dark: bool = False
    narrow: bool = False

    @property
    def ink(self) -> str:
        return "#E6E6E6" if self.dark else "#000000"

    @property
    def grey(self) -> str:
        return "#A9AEB4" if self.dark else "#555555"

    @property
    def paper(self) -> str:
        return "#16191D" if self.dark else "#FFFFFF"

    def settings(self) -> dict[Any, Any]:
        """Of matplotlib."""
        ink = dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor", "legend.labelcolor"), self.ink)
        paper = dict.fromkeys(("figure.facecolor", "axes.facecolor"), self.paper)
        grid = {"grid.color": "#2D3238" if self.dark else "#E4E4E4", "xtick.color": self.grey, "ytick.color": self.grey}
        return {**_STYLE, **ink, **paper, **grid}


LIGHT = Look()
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
    "grid.linewidth": 0.7,
    "xtick.minor.size": 0.0,
    "ytick.minor.size": 0.0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


@contextlib.contextmanager
def style(look: Look = LIGHT) -> Iterator[None]:
    """Our settings on matplotlib's defaults, whatever the user's are, which come back afterwards."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(look.settings())
        yield


def png(figure: "Figure", dpi: int = 160) -> bytes:
    """A figure as the bytes of a PNG file."""
    with style(), io.BytesIO() as buffer:
        figure.savefig(buffer, format="png", dpi=dpi)
        return buffer.getvalue()


def curves_figure(curves: Sequence[Curve], *, task: str, window: int, look: Look = LIGHT) -> "Figure":
    """Training loss over inner steps: mean over seeds and a band of one standard error.

    Losses are averaged over a short trailing window (2% of T) to be readable. A seed leaves the mean where it diverges, with a
    cross at that step; the legend counts such seeds. The dashed line is the reference's mean final loss. A dot on it marks the mean
    number of steps after which a competitor is at the reference's final loss, as the table has it: in the same seed, and by the mean
    over `window` steps, hence later than the drawn curve. It is open where it is of some seeds alone, as the others never are. More than
    twelve competitors have a panel each, in which the others are grey.

    Args:
      curves: the one that the picture is about first; one of them the reference.
      task: name, for the title.
      window: steps that final losses are averaged over.
      look: for which page.
    """
    from matplotlib.figure import Figure

    seeds, T = curves[0].losses.shape
    smoothing = max(1, T // 50)
    reference = next(curve for curve in curves if curve.reference)
    target = target_loss(reference, window)
    goal = Goal.of(reference, window)
    start = Estimate.of(np.concatenate([curve.losses[:, 0] for curve in curves])).mean
    axis = "training loss" if smoothing == 1 else f"training loss (mean of {smoothing} steps)"
    breaks = "\n" if look.narrow else " "
    band = f",{breaks}band: one standard error" * (seeds > 1)
    title = f"{task}:{breaks}T = {T} steps, {seeds} seed{'s' * (seeds > 1)}{band}"
    at_target = {"color": look.grey, "linewidth": 0.9, "linestyle": (0, (4, 3)), "zorder": 1}
    with style(look):
        if len(curves) > MOST:
            figure, axes = panels(len(curves), look)
            for own, ax in enumerate(axes):
                for index, curve in enumerate(curves):
                    if index != own:
                        _draw_faint(ax, curve, smoothing, look)
                _draw_curve(ax, own, curves[own], goal, target, smoothing, look)
                name, _, figures = str(ax.get_lines()[-1].get_label()).partition(": ")
                figures = figures.replace(" ± ", "\n± ").replace(", ", ",\n") if look.narrow else figures
                ax.set_title(f"{name}\n{figures}", fontsize=7.0 if look.narrow else 8.5)
            legend = []
            title += f"\nin each panel one optimizer in colour,{breaks}all others in grey; dashed:{breaks}{reference.name}'s final loss"
        else:
            figure = Figure(layout="constrained")
            axes = [figure.add_subplot()]
            for index, curve in enumerate(curves):
                _draw_curve(axes[0], index, curve, goal, target, smoothing, look)
            legend = axes[0].get_lines()
        ranges = [_range_of(curve, smoothing) for curve in curves]
        for place, ax in enumerate(axes):
            if math.isfinite(target):
                line = ax.axhline(target, **at_target, label=f"{reference.name}'s final loss; dots: reached")
                legend = [*legend, line] if len(axes) == 1 else []
            loss_axis(ax, *zip(*ranges, strict=True), start=start)
            for index, curve in enumerate(curves):
                if len(axes) == 1 or index == place:
                    _mark_divergence(ax, index, curve, smoothing)
            ax.set_xlim(0, T)
        if len(axes) == 1:
            axes[0].set_xlabel("inner step")
            axes[0].set_ylabel(axis)
            axes[0].set_title(title)
            legend_below(figure, [line for line in legend if not str(line.get_label()).startswith("_")], look, 3.3)
        else:
            figure.supxlabel("inner step", fontsize=9.0)
            figure.supylabel(axis, fontsize=9.0)
            figure.suptitle(title, x=0.01, ha="left", fontsize=9.0 if look.narrow else 10.0)
    return figure


def panels(count: int, look: Look, groups: int = 1) -> "tuple[Figure, list[Axes]]":
    """A figure with so many panels for each of some groups, those of a group of one scale: four beside each other, two on a narrow page."""
    from matplotlib.figure import Figure

    columns = 2 if look.narrow else 4
    rows = math.ceil(count / columns)
    size = (3.9, 0.9 + 1.8 * rows * groups) if look.narrow else (10.0, 0.9 + 2.0 * rows * groups)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.add_gridspec(rows * groups, columns)
    found: list[Any] = []
    for group in range(groups):
        first: Any = None
        for place in range(count):
            ax = figure.add_subplot(grid[group * rows + place // columns, place % columns], sharex=first, sharey=first)
            first = ax if first is None else first
            ax.tick_params(labelleft=place % columns == 0, labelbottom=place + columns >= count)
            found.append(ax)
    return figure, found


def legend_below(figure: "Figure", lines: Sequence["Line2D"], look: Look, height: float, width: float = 6.4) -> None:
    """Give a figure a legend below its panels, as high as it needs, in as many columns as its labels leave room for.

    Args:
      figure: whose size is set.
      lines: with labels.
      look: for which page.
      height: of the figure without its legend, in inches.
      width: of the figure, in inches.
    """
    width = 3.9 if look.narrow else width
    labels = [str(line.get_label()) for line in lines]
    longest = max(map(len, labels), default=0)
    columns = max(1, min(len(labels), int((width - 0.2) / (0.066 * longest + 0.55))))
    title = "final training loss, speed-up" if any(": " in label for label in labels) else None
    figure.set_size_inches(width, height + 0.19 * math.ceil(len(labels) / columns) + (0.3 if title else 0.1))
    place: Any = {"loc": "outside lower left", "ncols": columns, "alignment": "left", "handlelength": 2.8}
    figure.legend(lines, labels, **place, fontsize=7.5 if look.narrow else 8.5, title=title, title_fontsize=8.5)


def _draw_faint(ax: "Axes", curve: Curve, smoothing: int, look: Look) -> None:
    """A competitor that another panel is about."""
    mean, _ = over_seeds(trailing_mean(curve.losses, smoothing))
    ax.plot(np.arange(len(mean)) + smoothing, mean, color=look.grey, linewidth=0.6, alpha=0.35, zorder=2)


def _range_of(curve: Curve, smoothing: int) -> tuple[float, float]:
    """The range of a competitor's mean."""
    mean, _ = over_seeds(trailing_mean(curve.losses, smoothing))
    finite = mean[np.isfinite(mean)]
    return (float(finite.min()), float(finite.max())) if finite.size else (math.nan, math.nan)


def _draw_curve(ax: "Axes", index: int, curve: Curve, goal: Goal, target: float, smoothing: int, look: Look) -> None:
    """Draw one competitor, its dot at the height of the target."""
    losses = trailing_mean(curve.losses, smoothing)
    losses = np.where(np.isfinite(losses), losses, np.nan)
    steps = np.arange(losses.shape[1]) + smoothing
    mean, error = over_seeds(losses)
    line = line_look(index)
    label = f"{curve.name}: {Estimate.of(final_losses(curve.losses, goal.window)[~curve.diverged])}"
    if curve.diverged.any():
        label = f"{curve.name}: nan ({curve.diverged.sum()} of {len(curve.diverged)} seeds diverged)"
    dot, seeds = Estimate.of(goal.steps_of(curve)), len(curve.losses)
    if dot.count and not curve.reference:
        label += f", {Estimate.of(goal.speedups(curve)).mean:.2f}x"
        label += f" ({dot.count} of {seeds} seeds)" * (dot.count < seeds)
        fill, edge = (line["color"], look.paper) if dot.count == seeds else (look.paper, line["color"])
        at: Any = {"x": dot.mean, "y": target, "xerr": np.nan_to_num(dot.error)}
        ax.errorbar(**at, fmt="o", ms=5, color=line["color"], mfc=fill, mec=edge, zorder=9)
    ax.plot(steps, mean, **line, label=label, zorder=8 - index)
    ax.fill_between(steps, mean - error, mean + error, color=line["color"], alpha=0.18, linewidth=0, zorder=2)


def over_seeds(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error over the finite values of the first axis: [K, n] -> [n], [n], NaN where there are too few."""
    values = np.where(np.isfinite(values), values, np.nan)
    count = np.isfinite(values).sum(axis=0)
    mean = np.where(count > 0, np.nansum(values, axis=0) / np.maximum(count, 1), np.nan)
    variance = np.nansum(np.square(values - mean), axis=0) / np.maximum(count - 1, 1)
    return mean, np.where(count > 1, np.sqrt(variance / np.maximum(count, 1)), np.nan)


def _mark_divergence(ax: "Axes", index: int, curve: Curve, smoothing: int) -> None:
    """A cross where each diverged seed was last in the mean, at the frame's edge if that is beyond it.

    One that was never in it has its cross where its loss was last finite; at the frame's corner if it never was.
    """
    bottom, top = ax.get_ylim()
    for raw, smooth in zip(curve.losses[curve.diverged], trailing_mean(curve.losses, smoothing)[curve.diverged], strict=True):
        losses, first = (smooth, smoothing) if np.isfinite(smooth[0]) else (raw, 1)
        bad = np.flatnonzero(~np.isfinite(losses))
        last = (bad[0] if bad.size else len(losses)) - 1
        height = np.clip(losses[last], bottom, top) if last >= 0 else top
        color = line_look(index)["color"]
        ax.plot(last + first, height, "x", color=color, ms=7, mew=1.8, zorder=10, clip_on=False)


def loss_axis(ax: "Axes", bottoms: Sequence[float], tops: Sequence[float], start: float) -> None:
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
