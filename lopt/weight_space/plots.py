"""Pictures of a zoo and of predictions on it."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lopt.config import write_atomically
from lopt.reporting.plots import COLORS, png, style
from lopt.weight_space.predict import Prediction
from lopt.weight_space.store import LABELS_FILE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 20


def histogram_figure(labels: np.ndarray, learning_rates: np.ndarray, batch_sizes: np.ndarray, *, label: str) -> "Figure":
    """How a zoo's labels spread over [0, 1], and over learning rates and batch sizes.

    Args:
      labels: [N].
      learning_rates: [N].
      batch_sizes: [N].
      label: what the labels are.
    """
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(8.4, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.hist(labels, bins=BINS, range=(0, 1), color=COLORS[2], edgecolor="white", linewidth=0.5)
        left.set_xlabel(label)
        left.set_ylabel("models")
        left.set_title(f"{len(labels):,} models")
        for color, size in zip(COLORS, sorted(set(batch_sizes.tolist())), strict=False):
            chosen = batch_sizes == size
            right.plot(learning_rates[chosen], labels[chosen], ".", ms=3, alpha=0.6, color=color, label=f"batches of {size:g}")
        right.set_xscale("log")
        right.set_xlabel("learning rate")
        right.set_title(label)
        right.legend(loc="upper left", markerscale=3)
    return figure


def write_histogram(zoo: Path, label: str) -> Path:
    """Draw a zoo's labels beside it, from its table."""
    with (zoo / LABELS_FILE).open(newline="") as file:
        lines = list(csv.DictReader(file))
    columns = (np.array([float(line[name]) for line in lines]) for name in (label, "learning_rate", "batch_size"))
    path = zoo / f"{label}.png"
    write_atomically(path, png(histogram_figure(*columns, label=label)))
    return path


def scatter_figure(predictions: Mapping[str, Sequence[Prediction]], *, label: str) -> "Figure":
    """Prediction against label on the test part, a panel for each method: the seed of median tau.

    Args:
      predictions: method -> its seeds.
      label: what is predicted.
    """
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(2.6 * len(predictions) + 0.6, 3.1), layout="constrained")
        axes = figure.subplots(1, len(predictions), squeeze=False, sharey=True)[0]
        for ax, (method, seeds) in zip(axes, predictions.items(), strict=True):
            middle = sorted(seeds, key=lambda one: one.test.tau)[len(seeds) // 2]
            ax.plot([0, 1], [0, 1], color="#888888", linewidth=0.8)
            ax.plot(middle.labels, middle.predicted, ".", ms=4, alpha=0.6, color=COLORS[2])
            ax.set_xlim(-0.03, 1.03)
            ax.set_ylim(-0.03, 1.03)
            ax.set_title(f"{method}: tau {middle.test.tau:.3f}")
            ax.set_xlabel(label)
        axes[0].set_ylabel("prediction")
    return figure
