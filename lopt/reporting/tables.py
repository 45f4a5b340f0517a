"""An evaluation as tables: costs and searches for people, all figures as CSV and JSON for programs."""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lopt.evaluation.costs import Cost
from lopt.evaluation.evaluate import Evaluation
from lopt.evaluation.summary import Estimate, Row
from lopt.evaluation.tuning import Tuning
from lopt.runtime.environment import environment
from lopt.runtime.text import terminal_text

if TYPE_CHECKING:
    from rich.table import Table


def cost_table(evaluation: Evaluation) -> list[list[str]]:
    """The lines of the table of costs, its header first; none where costs were not measured."""
    if not evaluation.costs:
        return []
    header = [
        "optimizer",
        "us / update",
        "time, Adam = 1",
        "state, bytes / weight",
        "temporary, bytes / weight",
        "memory, Adam = 1",
    ]
    return [header, *([name, *_cost_cells(cost)] for name, cost in evaluation.costs.items())]


def _cost_cells(cost: Cost) -> list[str]:
    temporary = "unknown" if cost.temporary_bytes is None else _number(cost.temporary_bytes)
    memory, state = _number(cost.memory_ratio), _number(cost.state_bytes)
    return [_number(1e6 * cost.seconds), _number(cost.time_ratio), state, temporary, memory]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2g}"


def tuning_table(evaluation: Evaluation) -> list[list[str]]:
    """The lines of the table of what was tuned: the best, how much was tried, and what is to be known of it."""
    if not evaluation.tunings:
        return []
    header = ["baseline", "best learning rate", "score", "settings tried", "search"]
    return [header, *([title, *_tuning_cells(tuning)] for title, tuning in evaluation.tunings.items())]


def _tuning_cells(tuning: Tuning) -> list[str]:
    said = [f"extended {tuning.extensions} times"] if tuning.extensions else []
    said += ["the best is at the edge"] if tuning.at_edge else []
    said += ["kept from an earlier search"] if tuning.cached else []
    score = dict(tuning.tried)[tuning.best]
    return [str(tuning.best), f"{score:.4g}", str(len(tuning.tried)), "; ".join(said) or "the best is inside the grid"]


def rich_lines(lines: list[list[str]], title: str) -> "Table":
    """A table for a terminal."""
    from rich import box
    from rich.table import Table

    view = Table(title=terminal_text(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for index, name in enumerate(lines[0]):
        view.add_column(terminal_text(name), justify="right" if index > 1 else "left", overflow="fold", no_wrap=index == 0)
    for line in lines[1:]:
        view.add_row(*map(terminal_text, line))
    return view


def csv_text(evaluation: Evaluation) -> str:
    """One line an optimizer, numbers alone; a cell is empty where there is none, as for a speed-up that was never reached."""
    records = [_flat(row, evaluation.costs.get(row.name)) for row in evaluation.rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _flat(row: Row, cost: Cost | None) -> dict[str, Any]:
    def pair(name: str, estimate: Estimate) -> dict[str, Any]:
        return {name: finite(estimate.mean), f"{name}_standard_error": finite(estimate.error)}

    found = {"optimizer": row.name, "reference": int(row.reference), "seeds": row.seeds, "diverged": row.diverged}
    found |= pair("final_training_loss", row.final_loss)
    for name, estimate in row.test.items():
        found |= pair(f"test_{name}", estimate)
    found |= pair("steps_to_target", row.steps) | {"reached": row.steps.count} | pair("speed_up", row.speedup)
    found |= {"ms_per_step": 1e3 * row.seconds_per_step}
    if cost is not None:
        found |= {"update_us": 1e6 * cost.seconds, "update_time_over_adam": cost.time_ratio}
        found |= {"state_bytes_per_weight": cost.state_bytes, "temporary_bytes_per_weight": cost.temporary_bytes}
        found |= {"memory_over_adam": cost.memory_ratio}
    return found


def finite(value: float) -> float | None:
    """The number, or None where it is not finite, which JSON and CSV have no number for."""
    return value if math.isfinite(value) else None


def json_text(evaluation: Evaluation, configs: Mapping[str, Any] = MappingProxyType({})) -> str:
    """All figures of an evaluation but the curves, with its config and what it was run on; null where there is no finite number.

    Args:
      evaluation: whose figures.
      configs: others that it was made by, as `write_report` takes them.
    """
    rows = [{**dataclasses.asdict(row), "cost": _asdict(evaluation.costs.get(row.name))} for row in evaluation.rows]
    tunings = {
        title: {
            **{name: getattr(tuning, name) for name in ("at_edge", "extensions", "cached")},
            "best": dataclasses.asdict(tuning.best),
            "tried": [{**dataclasses.asdict(setting), "score": score} for setting, score in tuning.tried],
        }
        for title, tuning in evaluation.tunings.items()
    }
    found = {
        "task": evaluation.task,
        "seed": evaluation.seed,
        "config": dataclasses.asdict(evaluation.config),
        "configs": dict(configs),
        "target": evaluation.target,
        "window": evaluation.config.smoothing,
        "rows": rows,
        "tunings": tunings,
        "environment": environment(),
    }
    return plain_json(found)


def _asdict(cost: Cost | None) -> dict[str, Any] | None:
    return None if cost is None else dataclasses.asdict(cost)


def plain_json(value: Any) -> str:
    """JSON text of nested mappings and sequences; null where there is no finite number.

    Example:
      >>> json.loads(plain_json({"loss": float("nan")}))
      {'loss': None}
    """
    return json.dumps(_plain(value), indent=2, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return finite(value) if isinstance(value, float) else value
