"""Pictures of a suite: the performance profile, and the mean ratio to the reference at each budget of trials."""

from typing import TYPE_CHECKING

import numpy as np

from lopt.evaluation.aggregates import profile
from lopt.evaluation.suite import SuiteResult
from lopt.reporting.plots import LIGHT, Look, line_look, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FACTORS = np.geomspace(1.0, 3.0, 200)


def profile_figure(result: SuiteResult, look: Look = LIGHT) -> "Figure":
    """Left: the part of the runs that end within a factor of the lowest loss. Right: final loss over the reference's by trials.

    Raises:
      ValueError: if there is no task that every optimizer was raced on.
    """
    from matplotlib.figure import Figure

    if not result.complete:
        raise ValueError("there is no task yet that every optimizer was raced on")
    with style(look):
        figure = Figure(figsize=(3.9, 6.4) if look.narrow else (8.6, 3.6), layout="constrained")
        left, right = figure.subplots(*((2, 1) if look.narrow else (1, 2)))
        _profile(left, result)
        _by_trials(right, result)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2 if look.narrow else min(4, len(labels)))
    return figure


def _profile(ax: "Axes", result: SuiteResult) -> None:
    trials = result.config.trials[-1]
    shares = profile(np.stack([result.losses(name, trials) for name in result.optimizers]), _FACTORS)
    for index, (name, share) in enumerate(zip(result.optimizers, shares, strict=True)):
        ax.plot(_FACTORS, share, label=name, drawstyle="steps-post", **line_look(index))
    ax.set_xscale("log")
    ax.set_xticks([1, 1.2, 1.5, 2, 3], ["1", "1.2", "1.5", "2", "3"])
    ax.minorticks_off()
    ax.set_xlim(1, _FACTORS[-1])
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("factor of the lowest final loss")
    ax.set_ylabel("part of the runs within it")
    ax.set_title(f"{trials} trials")


def _by_trials(ax: "Axes", result: SuiteResult) -> None:
    budgets = result.config.trials
    found = [{one.name: one.ratio for one in result.aggregates(trials)} for trials in budgets]
    for index, name in enumerate(result.optimizers):
        ratios = [of_budget[name] for of_budget in found]
        look = line_look(index)
        at = np.arange(len(budgets)) + 0.05 * (index - len(result.optimizers) / 2)  # intervals beside each other
        values = np.array([[ratio.value, ratio.low, ratio.high] for ratio in ratios])
        values = np.where(np.isfinite(values), values, np.nan)
        ax.plot(at, values[:, 0], marker="o", markersize=3.5, **look)
        ax.vlines(at, values[:, 1], values[:, 2], color=look["color"], linewidth=1.2)
    ax.set_xticks(range(len(budgets)), [f"{trials}" for trials in budgets])
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("{x:g}")
    ax.set_xlabel("trials of the learning rate")
    ax.set_ylabel(f"final loss, {result.config.reference} = 1")
    ax.set_title("interquartile mean, 95% interval")
