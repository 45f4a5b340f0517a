"""The files of a generalization table: as a heat map, tables for people and for programs, and one page."""

import csv
import dataclasses
import io
from pathlib import Path
from typing import Any

from lopt.config import to_dict, write_atomically
from lopt.evaluation.generalization import Generalization, generalization_table, relative_loss
from lopt.evaluation.summary import markdown
from lopt.reporting import plots
from lopt.reporting.html_report import Page, Picture, html_page
from lopt.reporting.plots_heat_map import heat_map_figure
from lopt.reporting.tables import plain_json
from lopt.runtime.environment import environment
from lopt.runtime.text import markdown_text

CAPTION = (
    "Above: speed-up, the steps of the tuned reference to its own final loss over those of the optimizer. Below, and in colour: final "
    "training loss over the reference's; blue is better than it."
)


def _tuned(result: Generalization) -> list[list[str]]:
    """The lines of the table of what the rivals were tuned to, its header first."""
    titles = list(dict.fromkeys(title for race in result.races.values() for title in race.tunings))
    lines = [
        [name, *(str(race.tunings[title].best) + " (edge)" * race.tunings[title].at_edge for title in titles)]
        for name, race in result.races.items()
    ]
    return [["condition", *titles], *lines] if titles else []


def _conditions(result: Generalization) -> list[dict[str, Any]]:
    """What is raced under each condition, as JSON can hold it."""
    return [dataclasses.asdict(one) | {"task": to_dict(one.task)} for one in result.conditions]


def generalization_json(result: Generalization) -> str:
    """All figures, with the configs of the conditions; null where there is no finite number."""
    conditions = []
    for condition, about in zip(result.conditions, _conditions(result), strict=True):
        found = result.found[condition.name]
        if isinstance(found, str):
            conditions.append(about | {"error": found})
            continue
        rows = [dataclasses.asdict(row) | {"relative_loss": relative_loss(found, row)} for row in found.rows]
        tuned = {title: dataclasses.asdict(tuning.best) for title, tuning in found.tunings.items()}
        conditions.append(about | {"steps": found.config.steps, "target": found.target, "rows": rows, "tuned": tuned})
    whole = {
        "task": result.task,
        "seed": result.seed,
        "config": dataclasses.asdict(result.config),
        "conditions": conditions,
        "environment": environment(),
    }
    return plain_json(whole)


def write_generalization(result: Generalization, directory: Path) -> list[Path]:
    """Write generalization.html, .md, .csv, .json and, if there is anything to draw, .png, each atomically.

    Args:
      result: what to report.
      directory: an existing one.

    Returns:
      The paths written, the page first.
    """
    lines, config = generalization_table(result), result.config
    looks = {(dark, narrow): plots.Look(dark, narrow) for dark in (False, True) for narrow in (False, True)}
    rivals_only = all(row.reference for race in result.races.values() for row in race.rows)
    drawn = {} if rivals_only else {which: plots.png(heat_map_figure(result, look)) for which, look in looks.items()}
    title = f"{result.task}: generalization, {config.steps:,} inner steps, {config.seeds} seeds"
    budget = [
        f"Under every condition the baselines were tuned anew, by {config.tuning_seeds} seeds a setting, and all optimizers raced from "
        f"{config.seeds} other seeds.",
        "A condition changes one thing about the task that was trained on; `as trained` changes nothing.",
        "Speed-up: the steps that the reference takes to its own final loss under that condition over those of the optimizer, within a "
        "seed, averaged over the seeds that get there.",
    ]
    page = Page(
        title=title,
        results=lines,
        pictures=[Picture(CAPTION, drawn)] if drawn else [],
        tables={"Tuned to": _tuned(result)},
        lists={"Definitions": budget},
        details={
            "Config of the races": {"seed": result.seed, **dataclasses.asdict(config)},
            "Conditions": _conditions(result),
            "Versions and device": environment(),
        },
        results_last=True,
    )
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    picture = f"![{CAPTION}](generalization.png)\n\n" if drawn else ""
    body = f"# {markdown_text(title)}\n\n{picture}{markdown(lines)}\n\n## Tuned to\n\n{markdown(_tuned(result))}\n"
    files = {
        "generalization.html": html_page(page).encode(),
        "generalization.md": body.encode(),
        "generalization.csv": text.getvalue().encode(),
        "generalization.json": generalization_json(result).encode(),
    }
    if drawn:
        files["generalization.png"] = drawn[False, False]
    for name, content in files.items():
        write_atomically(directory / name, content)
    return [directory / name for name in files]
