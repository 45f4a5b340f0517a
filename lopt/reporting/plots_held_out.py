"""The picture of what a race saw on held-out data: loss and metrics over inner steps."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lopt.evaluation.summary import Curve
from lopt.reporting.plots import LIGHT, MOST, Look, legend_below, line_look, loss_axis, over_seeds, panels, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def held_out_figure(curves: Sequence[Curve], *, task: str, look: Look = LIGHT) -> "Figure":
    """Held-out loss and metrics over inner steps on a logarithmic axis: mean over seeds and a band of one standard error.

    A value that is not finite is left out of the mean, as in the picture of the training loss. More than twelve competitors have a panel
    each.

    Args:
      curves: the one that the picture is about first; with the same held-out metrics, "loss" among them.
      task: name, for the title.
      look: for which page.

    Raises:
      ValueError: if the curves have none.
    """
    from matplotlib.figure import Figure

    names = sorted(curves[0].held_out, key=lambda name: (name != "loss", name))
    if not names:
        raise ValueError("there is nothing to draw: the curves have no held-out metrics")
    with style(look):
        if len(curves) > MOST:
            figure, axes = panels(len(curves), look, len(names))
            places = [(name, [index]) for name in names for index in range(len(curves))]
        else:
            figure = Figure(layout="constrained")
            shape = (len(names), 1) if look.narrow else (1, len(names))
            axes = list(figure.subplots(*shape, squeeze=False).ravel())
            places = [(name, list(range(len(curves)))) for name in names]
        for ax, (name, shown) in zip(axes, places, strict=True):
            for index, curve in enumerate(curves):
                mean, error = over_seeds(np.asarray(curve.held_out[name], np.float64))
                at = np.maximum(curve.at, 0.5)  # a place for the start on a logarithmic axis
                if index not in shown:
                    ax.plot(at, mean, color=look.grey, linewidth=0.6, alpha=0.35)
                    continue
                line = line_look(index)
                ax.plot(at, mean, **line, label=curve.name, marker=".", ms=3, zorder=5)
                ax.fill_between(at, mean - error, mean + error, color=line["color"], alpha=0.18, linewidth=0)
            if name == "loss":
                start = np.concatenate([curve.held_out[name][:, 0] for curve in curves])
                loss_axis(ax, *zip(*(_range_of(curve, name) for curve in curves), strict=True), start=float(np.mean(start)))
            ax.set_xscale("log")
            ax.set_xlim(0.5, curves[0].at[-1])
            decades = int(np.log10(curves[0].at[-1]))
            ticks = [0.5, *(10.0**k for k in range(0, decades + 1, 1 if len(curves) <= MOST else 2))]
            ax.set_xticks(ticks, ["0", *(f"{tick:,.0f}" for tick in ticks[1:])])
            ax.minorticks_off()
            title = f"held-out {name.replace('_', ' ')}"
            if len(curves) > MOST:
                ax.set_title(f"{curves[shown[0]].name}\n{title}", fontsize=7.5 if look.narrow else 8.5)
            else:
                ax.set_xlabel("inner step")
                ax.set_title(title)
        if len(curves) > MOST:
            figure.supxlabel("inner step", fontsize=9.0)
        else:
            lines = [line for line in axes[0].get_lines() if not str(line.get_label()).startswith("_")]
            height, width = (3.0 * len(names) + 0.5, 3.9) if look.narrow else (3.4, max(3.6 * len(names) + 1.2, 6.4))
            legend_below(figure, lines, look, height, width)
        figure.suptitle(task, x=0.01, ha="left", fontsize=10.0, fontweight="bold")
    return figure


def _range_of(curve: Curve, name: str) -> tuple[float, float]:
    mean, _ = over_seeds(np.asarray(curve.held_out[name], np.float64))
    finite = mean[np.isfinite(mean)]
    return (float(finite.min()), float(finite.max())) if finite.size else (np.nan, np.nan)
