"""Draws the pictures of the pages on specs and on the reproduction: python docs/drawings.py"""

import itertools
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lopt.reporting.plots import png, style

IMAGES = Path(__file__).with_name("images")
REPORTS = Path(__file__).with_name("reproduction")
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#7F7F7F"


def tensor(
    ax: Axes, x: float, y: float, shape: tuple[float, float], title: str, rows: tuple[str, str], columns: tuple[str, str]
) -> None:
    """A matrix with its axes named, (name, colour) each; a stripe shows the index that a permutation moves."""
    width, height = shape
    ax.add_patch(Rectangle((x, y), width, height, facecolor="#F3F5F7", edgecolor="#888888"))
    if columns[1] != GREY:
        ax.add_patch(Rectangle((x + 0.55 * width, y), 0.14, height, facecolor=columns[1], alpha=0.75, linewidth=0))
    if rows[1] != GREY:
        ax.add_patch(Rectangle((x, y + 0.3 * height), width, 0.14, facecolor=rows[1], alpha=0.75, linewidth=0))
    ax.text(x + width / 2, y - 0.14, columns[0], color=columns[1], ha="center", va="top", fontsize=11)
    if rows[0]:
        ax.text(x - 0.09, y + height / 2, rows[0], color=rows[1], ha="right", va="center", fontsize=11, rotation=90)
    ax.text(x + width / 2, y + height + 0.1, title, ha="center", va="bottom", fontsize=11, fontweight="bold")


def blank(figure: Figure, width: float, height: float) -> Axes:
    ax = figure.subplots()
    ax.set_xlim(0, width)
    ax.set_ylim(0, height)
    ax.set_aspect("equal")
    ax.axis("off")
    return ax


def spec_mlp() -> Figure:
    """An MLP, a recurrent matrix, a convolution, and attention's features."""
    with style():
        figure = Figure(figsize=(6.4, 5.4), layout="constrained")
        ax = blank(figure, 6.4, 5.4)
        fixed = GREY
        tensor(ax, 0.6, 3.4, (1.2, 1.5), "dense0/kernel", ("pixels!", fixed), ("hidden", BLUE))
        tensor(ax, 2.7, 4.0, (1.2, 0.2), "dense0/bias", ("", fixed), ("hidden", BLUE))
        tensor(ax, 4.9, 3.5, (0.9, 1.2), "dense1/kernel", ("hidden", BLUE), ("classes!", fixed))
        tensor(ax, 0.6, 0.9, (1.2, 1.2), "recurrent", ("hidden", BLUE), ("hidden", BLUE))
        tensor(ax, 2.7, 0.9, (1.2, 1.2), "convolution", ("c0", ORANGE), ("kh! kw! c1", BLUE))
        tensor(ax, 4.8, 0.9, (1.2, 1.2), "query", ("embed", ORANGE), ("(heads dim)", BLUE))
        ax.text(0.2, 0.1, "one colour: moved together; grey, with !: the order carries meaning", fontsize=10, color="#555555")
    return figure


def spec_inference() -> Figure:
    """What is read off the jaxpr of tanh(x @ in) @ out."""
    lines = (
        ("in: f32[4,3]    out: f32[3,2]    x: f32[5,4]", "in: a b      out: c d      every axis on its own"),
        ("h = dot_general x in", "sums over x's features, which are data: a is pinned, a!;  h: 5! b"),
        ("t = tanh h", "elementwise: t has the axes of h;  t: 5! b"),
        ("y = dot_general t out", "sums over b of t and c of out: tied, c = b;  y: 5! d"),
        ("return y", "what is returned is pinned: d!"),
        ("", "in: a! b      out: b d!"),
    )
    with style():
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        ax = blank(figure, 6.4, 4.2)
        for row, (equation, effect) in enumerate(lines):
            y, last = 3.95 - 0.72 * row, row == len(lines) - 1
            ax.text(0.1, y, equation, family="DejaVu Sans Mono", fontsize=10.5, va="center")
            ax.text(
                0.4,
                y - 0.27 * (not last),
                effect,
                fontsize=10.5,
                va="center",
                color=BLUE,
                fontweight="bold" if last else "normal",
            )
    return figure


def unf_over_deep_sets() -> Figure:
    """Final losses of UNF over those of DeepSets, of every report under the paper's rule with f from a tenth."""
    kinds = {
        "rules-start": ("each from a draw of its own", BLUE),
        "terms": ("from the same DeepSets: UNF's terms alone, DeepSets all of it", ORANGE),
    }
    reports = itertools.product(("mlp", "cnn", "rnn", "transformer"), kinds)
    with style():
        figure = Figure(figsize=(6.4, 4.8), layout="constrained")
        ax = figure.subplots()
        ax.axvline(0, color=GREY, linewidth=1)
        ticks, drawn = {}, {}
        for task, kind in reports:
            label, colour = kinds[kind]
            with np.load(REPORTS / f"{task}_{kind}" / "curves.npz") as kept:
                unf, others = (
                    dict(zip(kept[f"{name}/seeds"], kept[f"{name}/final_loss"], strict=True)) for name in ("UNF", "DeepSets")
                )
            for seed in sorted(unf.keys() & others.keys()):
                y = -float(len(ticks))
                ticks[y] = f"{task.upper() if len(task) < 4 else task.capitalize()}, meta-seed {seed}"
                percent = 100 * (unf[seed] / others[seed] - 1)
                ax.plot(percent, np.full(len(percent), y), ".", color=GREY, alpha=0.5, markersize=5)
                error = percent.std(ddof=1) / len(percent) ** 0.5
                drawn[label] = ax.errorbar(percent.mean(), y, xerr=error, fmt="o", color=colour, capsize=3, markersize=5)
        ax.set_yticks(list(ticks), list(ticks.values()))
        ax.grid(visible=False, axis="y")
        ax.set_xlabel("final training loss, UNF over DeepSets, %")
        figure.legend(list(drawn.values()), list(drawn), loc="outside upper center", fontsize=9)
    return figure


if __name__ == "__main__":
    for name, draw in (("spec_mlp", spec_mlp), ("spec_inference", spec_inference), ("unf_over_deep_sets", unf_over_deep_sets)):
        (IMAGES / f"{name}.png").write_bytes(png(draw()))
