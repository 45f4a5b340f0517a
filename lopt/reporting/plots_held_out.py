"""The picture of what a race saw on held-out data: loss and metrics over inner steps."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lopt.evaluation.summary import Curve
from lopt.reporting.plots import LIGHT, Look, line_look, loss_axis, over_seeds, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def held_out_figure(curves: Sequence[Curve], *, task: str, look: Look = LIGHT) -> "Figure":
    """Held-out loss and metrics over inner steps on a logarithmic axis: mean over seeds and a band of one standard error.

    A value that is not finite is left out of the mean, as in the picture of the training loss.

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
        width, height = (3.9, 3.2 * len(names) + 0.4) if look.narrow else (3.6 * len(names) + 1.2, 3.6)
        figure = Figure(figsize=(width, height), layout="constrained")
        shape = (len(names), 1) if look.narrow else (1, len(names))
        axes = figure.subplots(*shape, squeeze=False).ravel()
        for ax, name in zip(axes, names, strict=True):
            ranges = []
            for index, curve in enumerate(curves):
                mean, error = over_seeds(np.asarray(curve.held_out[name], np.float64))
                at = np.maximum(curve.at, 0.5)  # a place for the start on a logarithmic axis
                line = line_look(index)
                ax.plot(at, mean, **line, label=curve.name, marker=".", ms=3)
                ax.fill_between(at, mean - error, mean + error, color=line["color"], alpha=0.18, linewidth=0)
                finite = mean[np.isfinite(mean)]
                ranges.append((finite.min(), finite.max()) if finite.size else (np.nan, np.nan))
            if name == "loss":
                start = np.concatenate([curve.held_out[name][:, 0] for curve in curves])
                loss_axis(ax, *zip(*ranges, strict=True), start=float(np.mean(start)))
            ax.set_xscale("log")
            ax.set_xlim(0.5, curves[0].at[-1])
            ticks = [0.5, *(10.0**k for k in range(int(np.log10(curves[0].at[-1])) + 1))]
            ax.set_xticks(ticks, ["0", *(f"{tick:,.0f}" for tick in ticks[1:])])
            ax.minorticks_off()
            ax.set_xlabel("inner step")
            ax.set_title(f"held-out {name.replace('_', ' ')}")
        axes[0].legend(loc="best")
        figure.suptitle(task, x=0.01, ha="left", fontsize=10.0, fontweight="bold")
    return figure
