"""Pictures of what benchmarks have recorded: of each point the newest record counts."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lopt.benchmarks.growth import growth
from lopt.reporting.plots import COLORS, DASHES, plain_log_labels, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]
TITLES = {
    "adam": "optax.adam",
    "unf": "UNF",
    "unf_bfloat16": "UNF, products in bfloat16",
    "unf_role": "UNF, shared by role",
    "deep_sets": "DeepSets",
    "celo2": "Celo2's direction, 8 8",
    "lopt_direction": "lopt-direction",
    "direction": "a direction from Muon's step",
    "shampoo_nominal": "Shampoo as a rule, roots every 4 steps",
    "muon_nominal": "Muon as a rule",
    "muon": "Muon of optax",
    "none": "a coefficient a pair",
    "role": "shared by role",
}
AXES = ("weights", "particles", "tensors", "truncation", "devices")
LINE_TO_REACH = 0.60  # of the machine's matrix products
TARGET_RATIO = 30.0  # of a learned optimizer's step to Adam's


def newest(records: Sequence[Record], *keys: str) -> list[Record]:
    """Of records that agree in these fields the last, in the order of first appearance."""
    found: dict[tuple[Any, ...], Record] = {}
    for record in records:
        found[tuple(record.get(key) for key in keys)] = record
    return list(found.values())


def by_themselves(records: Sequence[Record]) -> list[Record]:
    """The newest throughput record of each task, network and device; without those of a recipe in turns with others, whose ratios count."""
    return newest([r for r in records if not {"over_xla", "over_sgdm"} & r.keys()], "task", "network", "device", "devices")


def computed_by(record: Record) -> str:
    """What has computed the update network of a throughput record: the kernel in C++ or XLA; "-" where there is no network."""
    return "-" if record["network"] == "LearnedSGDM" else "kernel" if record.get("native") else "XLA"


def growth_of(records: Sequence[Record], axis: str, network: str, cost: str) -> tuple[list[float], list[float], float | None]:
    """The points of an axis of the scaling benchmark, and the slope of their growth; None where there is one point."""
    points = sorted(
        (record["value"], record[cost]) for record in records if (record["axis"], record["network"]) == (axis, network)
    )
    values, costs = [value for value, _ in points], [found for _, found in points]
    return values, costs, growth(values, costs)["slope"] if len(values) > 1 else None


def _log(ax: "Axes") -> None:
    ax.set_xscale("log")
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    if high < 100 * low:  # on so short an axis labels at 1, 2 and 5 find room
        plain_log_labels(ax)


def _plain(ax: "Axes", values: Sequence[float]) -> None:
    """Ticks at the values that were measured, as 1e5 or 64; every other one where they are many."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    ticks = sorted(set(values))
    ax.xaxis.set_major_locator(FixedLocator(ticks if len(ticks) <= 5 else ticks[::2]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"1e{len(str(int(value))) - 1}" if value >= 1e3 else f"{value:g}")
    )


def scaling_figure(records: Sequence[Record]) -> "Figure":
    """Time and planned memory of an outer step (or inner, for weights and tensors) along each axis, with the fitted slopes."""
    from matplotlib.figure import Figure

    records = newest([record for record in records if "value" in record], "axis", "value", "network")
    networks = list(dict.fromkeys(record["network"] for record in records))
    axes = [axis for axis in AXES if any(record["axis"] == axis for record in records)]
    with style():
        figure = Figure(figsize=(2.7 * len(axes), 5.2), layout="constrained")
        grid = figure.subplots(2, len(axes), squeeze=False)
        for column, axis in enumerate(axes):
            inner = axis in ("weights", "tensors")  # what one inner step costs; otherwise the outer step's cost grows
            for row, cost in enumerate(("inner_step_us" if inner else "outer_step_s", "program_mb")):
                ax: Axes = grid[row, column]
                for index, network in enumerate(networks):
                    values, costs, slope = growth_of(records, axis, network, cost)
                    label = f"{TITLES.get(network, network)}: " + ("-" if slope is None else f"{slope:.2f}")
                    ax.plot(values, costs, color=COLORS[index], linestyle=DASHES[index], marker="o", markersize=3.5, label=label)
                    if index == 0 and values:
                        power = -1 if axis == "devices" else 1
                        line = [costs[-1] * (value / values[-1]) ** power for value in values]
                        if row == 0 or axis != "devices":
                            ax.plot(values, line, color="#BBBBBB", linewidth=0.9, zorder=1)
                _log(ax)
                _plain(ax, [record["value"] for record in records if record["axis"] == axis])
                ax.legend(loc="best", fontsize=7.0, title="slope" if column == 0 else None, title_fontsize=7.0, alignment="left")
            grid[0, column].set_title(axis)
            grid[0, column].set_ylabel("inner step, µs" if inner else "outer step, s")
            grid[1, column].set_xlabel(axis)
        grid[1, 0].set_ylabel("memory planned for a device, MB")
        figure.suptitle("Growth of the outer step; grey: linear", x=0.01, ha="left", fontsize=10.0, fontweight="bold")
    return figure


def in_use_figure(records: Sequence[Record]) -> "Figure":
    """Time of a step and its ratio to Adam's over the number of weights, and memory a weight for the largest model."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    records = newest(records, "optimizer", "weights", "device")
    names = list(dict.fromkeys(record["optimizer"] for record in records))
    with style():
        figure = Figure(figsize=(10.0, 3.7), layout="constrained")
        time_ax, ratio_ax, memory_ax = figure.subplots(1, 3)
        for index, name in enumerate(names):
            points = sorted((r["weights"], r["ns_per_weight"], r["ratio"]) for r in records if r["optimizer"] == name)
            look = {"color": COLORS[index], "linestyle": DASHES[index], "marker": "o", "markersize": 3.5}
            time_ax.plot([p[0] for p in points], [p[1] for p in points], label=TITLES.get(name, name), **look)
            if name != "adam":
                ratio_ax.plot([p[0] for p in points], [p[2] for p in points], **look)
        ratio_ax.axhline(TARGET_RATIO, color="#555555", linewidth=0.9, linestyle=(0, (4, 3)))
        for ax in (time_ax, ratio_ax):
            _log(ax)
            ax.set_xlabel("weights")
        ratio_ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
        time_ax.set_title("step of the optimizer, ns a weight")
        figure.legend(handles=time_ax.get_lines(), loc="outside lower center", ncols=5, fontsize=7.5)
        ratio_ax.set_title("the same, times Adam's (dashed: 30x)")
        # Of each the largest model that it was measured on: not all need be measured on all.
        shown = [max((r for r in records if r["optimizer"] == name), key=lambda r: r["weights"]) for name in names]
        labels = [TITLES.get(name, name) for name in names]
        state = [record["state_bytes"] for record in shown]
        memory_ax.barh(labels, state, color=COLORS[2], label="state")
        memory_ax.barh(labels, [r["temp_bytes"] for r in shown], left=state, color=COLORS[5], label="temporary")
        memory_ax.invert_yaxis()
        memory_ax.grid(visible=False, axis="y")
        memory_ax.legend(loc="best", fontsize=7.5)
        memory_ax.set_title("bytes a weight, largest model")
    return figure


def throughput_figure(records: Sequence[Record]) -> "Figure":
    """Utilisation of the machine's matrix products, a bar for each task, network and device."""
    from matplotlib.figure import Figure

    records = by_themselves(records)
    devices = {record["device"] for record in records}
    networks = list(dict.fromkeys(record["network"] for record in records))
    labels = [
        f"{r['task']}, {r['network']}"
        + ", by XLA" * (computed_by(r) == "XLA")
        + (f" on {r['device']}" if len(devices) > 1 else "")
        for r in records
    ]  # a bar's name is its place: two of one name would lie on each other
    with style():
        figure = Figure(figsize=(7.5, 0.8 + 0.3 * len(records)), layout="constrained")
        ax = figure.subplots()
        colors = [COLORS[networks.index(record["network"]) % len(COLORS)] for record in records]
        bars = ax.barh(range(len(records)), [record["utilisation"] for record in records], color=colors)
        behind = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}  # the line that is to be reached passes below
        ax.bar_label(bars, [f"{r['inner_steps_per_s']:,} inner steps/s" for r in records], padding=4, fontsize=8.0, bbox=behind)
        ax.axvline(LINE_TO_REACH, color="#555555", linewidth=0.9, linestyle=(0, (4, 3)))
        ax.set_yticks(range(len(records)), labels)
        ax.set_xlim(0, 1.35 * max(LINE_TO_REACH, *(record["utilisation"] for record in records)))
        ax.invert_yaxis()
        ax.grid(visible=False, axis="y")
        ax.set_title("utilisation of the machine's matrix products")
    return figure


def estimators_figure(records: Sequence[Record]) -> "Figure":
    """Variance over the number of windows, one line an estimator, both axes logarithmic."""
    from matplotlib.figure import Figure

    records = newest(records, "task", "estimator", "windows")
    records = [record for record in records if record["task"] == records[0]["task"]]
    with style():
        figure = Figure(figsize=(6.5, 3.8), layout="constrained")
        ax = figure.subplots()
        for index, name in enumerate(dict.fromkeys(record["estimator"] for record in records)):
            points = sorted((record["windows"], record["variance"]) for record in records if record["estimator"] == name)
            look = {"color": COLORS[index % len(COLORS)], "linestyle": DASHES[index % len(DASHES)]}
            ax.plot([p[0] for p in points], [p[1] for p in points], marker="o", markersize=3.5, label=name, **look)
        _log(ax)
        ax.set_xscale("log", base=2)
        ax.set(xlabel="windows of an inner training", ylabel="variance of one particle's estimate")
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def compile_figure(records: Sequence[Record]) -> "Figure":
    """Time to trace and compile, and peak memory, over the number of Transformer blocks."""
    from matplotlib.figure import Figure

    records = newest(records, "blocks", "share")
    with style():
        figure = Figure(figsize=(6.5, 2.9), layout="constrained")
        time_ax, memory_ax = figure.subplots(1, 2)
        for index, share in enumerate(dict.fromkeys(record["share"] for record in records)):
            found = sorted((r for r in records if r["share"] == share), key=lambda r: r["tensors"])
            tensors = [record["tensors"] for record in found]
            look = {"color": COLORS[index], "linestyle": DASHES[index], "marker": "o", "markersize": 3.5}
            time_ax.plot(tensors, [r["trace_s"] + r["compile_s"] for r in found], label=TITLES.get(share, share), **look)
            memory_ax.plot(tensors, [r["peak_mb"] for r in found], **look)
        time_ax.set_title("trace and compile, s")
        memory_ax.set_title("peak memory, MB")
        time_ax.legend(loc="best")
        for ax in (time_ax, memory_ax):
            ax.set_ylim(bottom=0)
            ax.set_xlabel("tensors of the Transformer")
    return figure


FIGURES: dict[str, Callable[[Sequence[Record]], "Figure"]] = {
    "scaling": scaling_figure,
    "in-use": in_use_figure,
    "throughput": throughput_figure,
    "estimators": estimators_figure,
    "compile": compile_figure,
}
