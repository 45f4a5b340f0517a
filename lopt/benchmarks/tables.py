"""Markdown tables of what benchmarks have recorded, and the places in a page where they belong."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from lopt.benchmarks.figures import AXES, TITLES, Record, by_themselves, newest
from lopt.benchmarks.growth import growth
from lopt.evaluation.summary import markdown


def as_markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right."""
    return markdown([header, *([str(cell) for cell in row] for row in rows)])


def scaling_table(records: Sequence[Record]) -> str:
    """A row for each axis and network: fitted slopes, where growth is linear, and speeds at both ends of the range."""
    points = newest([record for record in records if "value" in record], "axis", "value", "network")
    rows = []
    for network in dict.fromkeys(record["network"] for record in points):
        for axis in AXES:
            found = sorted((r for r in points if (r["axis"], r["network"]) == (axis, network)), key=lambda r: r["value"])
            if len(found) < 2:
                continue
            values = [record["value"] for record in found]
            times = growth(values, [record["outer_step_s"] for record in found])
            linear = "-" if times["linear"] is None else " to ".join(f"{value:,}" for value in times["linear"])
            ends = [f"{record['inner_steps_per_s']:,.0f}" for record in (found[0], found[-1])]
            row = [f"{TITLES.get(network, network)}: {axis}", f"{values[0]:,} to {values[-1]:,}", times["slope"], linear]
            rows.append([*row, " to ".join(ends)])
    return as_markdown(("axis", "range", "slope of time", "linear", "inner steps/s"), rows)


def throughput_table(records: Sequence[Record]) -> str:
    """A row for each task, network and device."""
    rows = []
    for r in by_themselves(records):
        low, high = r["inner_steps_per_s_range"]
        shares = ", ".join(
            f"{part.replace('_', ' ')} {share:.0%}" for part, share in r.get("shares", {}).items() if share >= 0.05
        )
        row = [f"{r['task']}, {r['network']}", f"{r['inner_steps_per_s']:,} ({low:,} to {high:,})", f"{r['utilisation']:.2f}"]
        rows.append([*row, f"{r['compile_s']:.0f} s", shares or "-"])
    return as_markdown(("task, network", "inner steps/s (range)", "utilisation", "compile", "spent on"), rows)


def in_use_table(records: Sequence[Record]) -> str:
    """A row for each optimizer and device, a column for each size: the step over Adam's, and nanoseconds a weight; bytes at the largest."""
    found = sorted(newest(records, "optimizer", "weights", "device"), key=lambda r: r["weights"])
    sizes = list(dict.fromkeys(r["weights"] for r in found))
    rows = []
    for optimizer, device in dict.fromkeys((r["optimizer"], r["device"]) for r in sorted(found, key=lambda r: r["ratio"] != 1)):
        of = {r["weights"]: r for r in found if (r["optimizer"], r["device"]) == (optimizer, device)}
        steps = [f"{of[size]['ratio']:.3g} ({of[size]['ns_per_weight']:.3g} ns)" if size in of else "-" for size in sizes]
        largest = of[max(of)]
        rows.append([TITLES.get(optimizer, optimizer), *steps, *(largest[f"{name}_bytes"] for name in ("state", "peak"))])
    header = (*(f"{size:,} weights" for size in sizes), "state, bytes a weight", "peak of the step")
    return as_markdown(("optimizer", *header), rows)


def startup_table(records: Sequence[Record]) -> str:
    """A row for each wait, of the newest record."""
    names = {"import_jax_s": "`import jax`", "import_lopt_s": "`import lopt`, beyond that"}
    names |= {"import_trainer_s": "`import lopt.training.trainer`, beyond that"}
    for mode, what in (("off", "nothing kept"), ("cold", "programs are written"), ("warm", "programs are read")):
        names[f"first_step_{mode}_s"] = f"one outer step of the smoke config, {what}"
    record = records[-1]
    rows = [[names[name], f"{value} s"] for name, value in record.items() if name in names]
    helps = sorted(value for name, value in record.items() if name.startswith("help_"))
    if helps:
        rows.append(["`--help` of a script", f"{helps[0]} to {helps[-1]} s"])
    return as_markdown(("wait", "median"), rows)


def reliability_table(records: Sequence[Record]) -> str:
    """A row for each kind of fault, all its recorded attempts taken together."""
    rows = []
    for kind in dict.fromkeys(record["kind"] for record in records):
        counts = [sum(r[name] for r in records if r["kind"] == kind) for name in ("attempts", "same", "told", "lost")]
        rows.append([kind, *(f"{count:,}" for count in counts)])
    return as_markdown(("what happened", "attempts", "ended as if nothing had", "told by name", "lost"), rows)


TABLES: dict[str, Callable[[Sequence[Record]], str]] = {
    "scaling": scaling_table,
    "throughput": throughput_table,
    "in-use": in_use_table,
    "startup": startup_table,
    "reliability": reliability_table,
}


def fill(page: str, name: str, content: str) -> str:
    r"""The page with this content between the lines `<!-- table NAME -->` and `<!-- end -->`; the same where there is no such place.

    Example:
      >>> fill("<!-- table a -->\nold\n<!-- end -->", "a", "new")
      '<!-- table a -->\nnew\n<!-- end -->'
    """
    place = re.compile(rf"(<!-- table {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    return place.sub(lambda found: f"{found[1]}{content}\n{found[2]}", page)
