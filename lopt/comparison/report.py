"""The files of a comparison: picture, tables, curves, thetas and metrics in small form, and a README of all that."""

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lopt import config
from lopt.comparison.arrays import curve_arrays, metric_arrays, npz
from lopt.comparison.figure import comparison_figure
from lopt.comparison.races import Entry
from lopt.comparison.results import RivalRow, differences, entries_of, goal, rows
from lopt.comparison.state import seconds_of
from lopt.comparison.words import budget_lines, captions, hours, loss_text, outer_steps_text, speedup_text
from lopt.comparison.work import Found
from lopt.evaluation.summary import Estimate, bullets, markdown
from lopt.reporting import plots
from lopt.reporting.tables import finite, plain_json
from lopt.runtime.environment import environment
from lopt.training import checkpoint

THETA_DIR = "theta"


def comparison_table(found: Found) -> list[list[str]]:
    """The lines of the table, its header first."""
    lines, total = rows(found), found.agenda.budget.experiment.outer_steps
    metrics = [name for name in lines[-1].test if name != "loss"] or list(lines[-1].test)
    header = [
        "optimizer",
        "meta-seeds",
        "final training loss",
        *(f"test {name.replace('_', ' ')}" for name in metrics),
        "speed-up",
    ]
    header += ["diverged", "meta-parameters", "outer steps", "time"]
    return [header, *(_cells(row, metrics, total) for row in lines)]


def _cells(row: RivalRow, metrics: Sequence[str], total: int) -> list[str]:
    seeds = f"{row.seeds} of {row.planned}" if row.is_learned else ""
    diverged = f"{row.diverged} of {row.raced}" if row.diverged else "0"
    diverged += f"; {row.diverged_runs} of {row.seeds} meta-trainings" if row.diverged_runs else ""
    name = f"{row.label} ({row.tuned})" if row.tuned else row.label
    sizes = [f"{row.parameters:,}", outer_steps_text(row, total), hours(row.seconds)] if row.is_learned else ["", "", ""]
    return [name, seeds, loss_text(row), *(str(row.test[metric]) for metric in metrics), speedup_text(row), diverged, *sizes]


def short_table(found: Found) -> list[list[str]]:
    """The lines of a table that is narrow enough for a terminal."""
    lines = rows(found)
    header = ["optimizer", "meta-seeds", "final training loss", "speed-up", "diverged"]
    return [header, *(_cells(row, (), found.agenda.budget.experiment.outer_steps)[: len(header)] for row in lines)]


def csv_text(found: Found) -> str:
    """One line an optimizer, numbers alone; a cell is empty where there is none, as for a speed-up that was never reached."""
    lines = []
    for row in rows(found):
        line: dict[str, Any] = {"optimizer": row.label, "meta_seeds": row.seeds, "meta_seeds_planned": row.planned}
        for name, estimate in (("final_training_loss", row.final_loss), ("speed_up", row.speedup), *_tests(row)):
            line |= {name: finite(estimate.mean), f"{name}_standard_error": finite(estimate.error)}
        line |= {"racing_seeds": row.raced, "reached": row.reached, "diverged": row.diverged}
        line |= {"diverged_meta_trainings": row.diverged_runs, "meta_parameters": row.parameters or None}
        line |= {"outer_steps": sum(row.outer_steps) or None, "hours": row.seconds / 3600 if row.is_learned else None}
        lines.append(line)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _tests(row: RivalRow) -> list[tuple[str, Estimate]]:
    return [(f"test_{name}", estimate) for name, estimate in row.test.items()]


def json_text(found: Found) -> str:
    """All figures but the curves, with the configs, versions and devices; null where there is no finite number."""
    agenda, (target, to_reach) = found.agenda, goal(found)
    whole = {
        "task": agenda.task,
        "title": agenda.title,
        "budget": agenda.budget.name,
        "differs": agenda.budget.differs,
        "target": target,
        "reference_steps": Estimate.of(to_reach.steps).mean,
        "window": agenda.budget.experiment.evaluation.smoothing,
        "rows": [dataclasses.asdict(row) for row in rows(found)],
        "differences": [dataclasses.asdict(one) for one in differences(found)],
        "runs": [_run(entry) for entry in entries_of(found)],
        "planned": [run.name for run in agenda.runs],
        "published": {"source": agenda.config.source, "speed_ups": [dataclasses.asdict(one) for one in agenda.config.published]},
        "config": config.to_dict(agenda.budget.experiment),
        "rivals": {
            rival.label: config.to_dict(agenda.budget.experiment_of(rival, 0).optimizer) for rival in agenda.config.rivals
        },
        "environment": environment(),
    }
    return plain_json(whole)


def _run(entry: Entry) -> dict[str, Any]:
    state = entry.state
    return {
        "label": entry.run.label,
        "seed": entry.run.seed,
        "outer_steps": state.done,
        "theta": {"which": entry.which, "outer_step": entry.step},
        "diverged": state.diverged,
        "seconds": seconds_of(state.records, entry.inner_steps),
        "starts": state.starts,
    }


def _beside(found: Found) -> str:
    published = found.agenda.config.published
    if not published:
        return ""
    ours = {row.label: speedup_text(row) for row in rows(found)}
    lines = [["optimizer", "speed-up here", "re-run"]]
    lines += [[one.label, ours.get(one.label, "not run"), f"{one.speedup:g} ± {one.error:g}x"] for one in published]
    return f"## Beside others\n\nThe figures of {found.agenda.config.source}, at the paper's budget:\n\n{markdown(lines)}\n\n"


def _differences(found: Found) -> str:
    lines = [["training loss", "meta-seed", "difference at the end", "below in", "difference over all steps"]]
    for one in differences(found):
        seed = f"all {one.final.count}" if one.seed is None else str(one.seed)
        below = f"{one.below} of {one.final.count}"
        lines.append([f"{one.label} - {one.other}", seed, str(one.final), below, str(one.whole)])
    if len(lines) == 1:
        return ""
    text = "Within racing seeds, which share weights and batches: ± is one standard error over them, and over meta-seeds in a line for all."
    return f"## What the network changes\n\n{text}\n\n{markdown(lines)}\n\n"


def _runs(found: Found) -> str:
    lines = [["run", "outer steps", "theta that was raced", "time", "jax", "device"]]
    for entry in entries_of(found):
        state, start = entry.state, (entry.state.starts or ({},))[-1]
        done = f"{state.done:,}" + " (diverged)" * state.diverged
        device = f"{start.get('device', 'unknown')} x {start.get('devices', '?')}"
        seconds = hours(seconds_of(state.records, entry.inner_steps))
        jax = start.get("packages", {}).get("jax", "unknown")
        lines.append([entry.run.name, done, f"{entry.which}, outer step {entry.step:,}", seconds, jax, device])
    missing = [run.name for run in found.agenda.runs if run.name not in {entry.run.name for entry in entries_of(found)}]
    return markdown(lines) + (f"\n\nNot run yet: {'; '.join(missing)}." if missing else "")


def readme(found: Found) -> str:
    """README.md: the picture, the table, the budget and what differs from the paper."""
    agenda, window = found.agenda, found.agenda.budget.experiment.evaluation.smoothing
    target, to_reach = goal(found)
    name, steps = found.tuned[0].curve.name, Estimate.of(to_reach.steps)
    definitions = [
        *captions(found),
        f"Final training loss: mean of the last {window} minibatch losses of a racing seed.",
        f"Speed-up: the steps after which {name} is at its final loss of a racing seed ({steps} steps, {target:.4g} on the average), over "
        f"the steps after which the mean of the optimizer's last {window} losses in this seed is; over the seeds that get there. How many "
        f"never do is said. {name} itself has 1 in every seed.",
        "Diverged: a loss was not finite. Such seeds are left out of the means of losses and metrics, which then begin with `nan`; one "
        "that was at the loss to reach before counts as having reached it. A meta-training is given up when nothing finite has come of "
        "many outer steps in a row.",
    ]
    packages = environment()["packages"]
    differs = f"## What differs from the paper\n\n{bullets(agenda.budget.differs)}\n\n" if agenda.budget.differs else ""
    return f"""# {agenda.title}: budget `{agenda.budget.name}`

![training loss over inner steps, and held-out loss over outer steps]({agenda.picture})

{markdown(comparison_table(found))}

{_differences(found)}{_beside(found)}## Budget

{bullets(budget_lines(found))}

{_runs(found)}

Drawn with {", ".join(f"{name} {version}" for name, version in packages.items())}.

{differs}## Definitions

{bullets(definitions)}

## Files

`table.md`, `table.csv`, `table.json`: the figures. `curves.npz`: the races. `metrics.npz`: the meta-trainings. `theta/`: the
meta-parameters that were raced, each with its config, as `lopt.load` and `scripts/evaluate.py --optimizer adam theta/LABEL-SEED` take them.
Again: `{agenda.command}`.
"""


def _write_theta(entry: Entry, directory: Path) -> Path:
    """A theta as a directory that `scripts/evaluate.py` takes for a run's: its config and one checkpoint of theta alone."""
    path = directory / THETA_DIR / f"{entry.run.label}-{entry.run.seed}"
    path.mkdir(parents=True, exist_ok=True)
    config.save(entry.run.experiment, path / config.CONFIG_FILE)
    written = checkpoint.save(path, entry.step, {"theta": entry.theta}, keep=1)
    for other in written.parent.glob("*.safetensors"):
        if other != written:
            other.unlink()
    return written


def write_comparison(found: Found, directory: str | Path) -> list[Path]:
    """Write the picture, README.md, table.md, .csv and .json, curves.npz, metrics.npz and theta/, each file atomically.

    Args:
      found: what to report; a part of an agenda will do.
      directory: made if need be.

    Returns:
      The paths written but theta's, the picture first.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    files = {
        found.agenda.picture: plots.png(comparison_figure(found)),
        "README.md": readme(found).encode(),
        "table.md": (markdown(comparison_table(found)) + "\n").encode(),
        "table.csv": csv_text(found).encode(),
        "table.json": json_text(found).encode(),
        "curves.npz": npz(curve_arrays(found)),
        "metrics.npz": npz(metric_arrays(found)),
    }
    for name, content in files.items():
        config.write_atomically(directory / name, content)
    for entry in entries_of(found):
        _write_theta(entry, directory)
    return [directory / name for name in files]
