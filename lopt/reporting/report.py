"""The files that an evaluation leaves in a directory: its figures as tables, arrays and pictures, and all of them as one page."""

import dataclasses
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from lopt.config import write_atomically
from lopt.evaluation.baselines import Baseline, find_baseline
from lopt.evaluation.evaluate import Evaluation
from lopt.evaluation.summary import bullets, markdown, markdown_table, race_table, rich_table
from lopt.evaluation.tuning import Tuning
from lopt.reporting import plots
from lopt.reporting.html_report import Page, Picture, html_page
from lopt.reporting.plots_held_out import held_out_figure
from lopt.reporting.plots_meta import meta_training_figure
from lopt.reporting.tables import cost_table, csv_text, json_text, tuning_table
from lopt.runtime.environment import environment
from lopt.runtime.text import markdown_text

if TYPE_CHECKING:
    from rich.table import Table


def curve_arrays(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """What curves.npz holds, C competitors, K seeds, T steps, M times of measurement, n settings tried.

    `names` [C]; `losses` [C, K, T] float32, of minibatches; `held_out/at` [M], steps; `held_out/<metric>` [C, K, M];
    `test/<metric>` [C, K]; `seconds_per_step` [C]; `target` [], the loss to reach; `window` [], the steps that final losses are averaged
    over; of each baseline that was tuned `tuning/<baseline>/` `learning_rate`, `momentum` (NaN: its default), `schedule`, `score`, [n].
    """
    curves = evaluation.curves
    tried = {}
    for title, tuning in evaluation.tunings.items():
        settings = [setting for setting, _ in tuning.tried]
        tried[f"tuning/{title}/learning_rate"] = np.array([setting.learning_rate for setting in settings])
        tried[f"tuning/{title}/momentum"] = np.array([setting.momentum for setting in settings], float)
        tried[f"tuning/{title}/schedule"] = np.array([setting.schedule for setting in settings])
        tried[f"tuning/{title}/score"] = np.array([score for _, score in tuning.tried])
    return {
        "names": np.array([curve.name for curve in curves]),
        "losses": np.stack([curve.losses for curve in curves]),
        **{f"test/{metric}": np.stack([curve.test[metric] for curve in curves]) for metric in curves[0].test},
        "seconds_per_step": np.array([curve.seconds_per_step for curve in curves]),
        "target": np.array(evaluation.target),
        "window": np.array(evaluation.config.smoothing),
        "held_out/at": curves[0].at,
        **{f"held_out/{metric}": np.stack([curve.held_out[metric] for curve in curves]) for metric in curves[0].held_out},
        **tried,
    }


def _meta_training(records: Sequence[Mapping[str, Any]], inner_steps: int) -> str:
    outer_steps = records[-1]["outer_step"]
    text = f"{outer_steps:,} outer steps of {inner_steps:,} inner steps each, {outer_steps * inner_steps:,} in all"
    speeds = [record["inner_steps_per_s"] for record in records if record.get("inner_steps_per_s")]
    return text + (f"; they took {sum(inner_steps / speed for speed in speeds):,.0f} s" if len(speeds) == outer_steps else "")


def _given(evaluation: Evaluation) -> list[Baseline]:
    """The baselines whose learning rates were given rather than searched for."""
    baselines = map(find_baseline, evaluation.config.baselines)
    return [baseline for baseline in baselines if baseline.learning_rate is not None]


def _tuned(tuning: Tuning) -> str:
    edge = " This is the edge of what was tried: a better one may lie beyond." if tuning.at_edge else ""
    tried = "; ".join(f"{setting}: {score:.4g}" for setting, score in tuning.tried)
    extended = f" The grid was extended {tuning.extensions} times." if tuning.extensions else ""
    kept = " Kept from an earlier search." if tuning.cached else ""
    return f"**{tuning.best}**.{edge}{extended}{kept} Tried (setting: score): {tried}."


def _budget(evaluation: Evaluation, records: Sequence[Mapping[str, Any]], inner_steps: int | None) -> list[str]:
    config = evaluation.config
    budget = [f"race: {config.seeds} seeds of {config.steps:,} inner steps each for every optimizer"]
    if evaluation.tunings:
        budget.append(
            f"tuning: {config.tuning_seeds} other seeds of {config.steps:,} inner steps for each setting that was tried"
        )
    if records and inner_steps is not None:
        budget = [f"meta-training: {_meta_training(records, inner_steps)}", *budget]
    return budget


def _definitions(evaluation: Evaluation) -> list[str]:
    config, window = evaluation.config, evaluation.config.smoothing
    reference = next(curve.name for curve in evaluation.curves if curve.reference)
    return [
        "± is the standard error over seeds: the sample standard deviation over the root of their number.",
        "A seed is an initialisation that meta-training did not see, with its own sequence of minibatches; both are the same for all "
        "optimizers.",
        f"Final training loss: mean of the last {window} minibatch losses of a seed. The loss of a minibatch is the one whose "
        "gradient is taken, before the step.",
        "Test figures: on the whole test split, after the last step.",
        f"Held-out figures: means over {config.measured_batches} batches of a split that neither inner trainings nor meta-training "
        "see.",
        f"Steps to {reference}'s final loss: the first number of steps after which the mean of a seed's last {window} minibatch "
        f"losses is at most the final training loss of {reference} in the same seed, {evaluation.target:.4g} on the average; the mean is "
        f"over the seeds that reach it within {config.steps} steps, and those that never do are counted. It cannot be less than {window}.",
        f"Speed-up: the steps of {reference} to its final loss over those of the optimizer, within a seed, averaged over the seeds that "
        f"reach the loss; {reference} itself has 1 in every seed.",
        "Diverged: a loss of the seed was not finite. Such seeds are left out of the means of losses and metrics, which then begin with "
        "`nan`. One that was at the loss to reach before it diverged counts as having reached it.",
        "ms / step: wall time of all seeds together over the number of their inner steps, without compilation and with the looks at "
        "held-out data, on the machine that ran this.",
        "Score of a setting: the mean final training loss over the tuning seeds, or `inf` if any of them diverged. Learning rates are "
        "constant unless a schedule is named: cosine falls to zero, warmup cosine rises for a tenth of the steps before.",
        "us / update: a step of the optimizer alone, `update` and `apply_updates`, the gradient given: the median over turns that all "
        "optimizers take one after another in one process, on one device; Adam = 1: the median of the ratios to the turns of Adam at a "
        "constant rate.",
        "State: what the optimizer keeps between steps; temporary: buffers that XLA plans for a step; memory: both, beside Adam's.",
    ]


def summary_markdown(evaluation: Evaluation, records: Sequence[Mapping[str, Any]] = (), inner_steps: int | None = None) -> str:
    """The text of summary.md: table, tuned learning rates, costs, budget, and how each figure is defined.

    Args:
      evaluation: what to report.
      records: of the meta-training, in order, from `lopt.training.metrics.read`.
      inner_steps: in one outer step, all particles counted; the budget of the meta-training is stated if both are given.
    """
    config = evaluation.config
    tunings = [f"- {markdown_text(title)}: {_tuned(tuning)}" for title, tuning in evaluation.tunings.items()]
    tunings += [
        f"- {markdown_text(baseline.title)}: **{baseline.learning_rate:g}**, as given." for baseline in _given(evaluation)
    ]
    return f"""# {markdown_text(evaluation.task)}: {config.steps} inner steps, {config.seeds} seeds

{markdown_table(evaluation.rows)}

![training loss over inner steps](curves.png)

## Learning rates

{chr(10).join(tunings)}

## Costs

{markdown(cost_table(evaluation)) or "They were not measured."}

## Budget

{bullets(_budget(evaluation, records, inner_steps))}

## Definitions

{bullets(_definitions(evaluation))}
"""


def terminal_table(evaluation: Evaluation) -> "Table":
    """The table of a race for a terminal, with what the baselines were tuned to and what steps cost."""
    config = evaluation.config
    rates = "; ".join(f"{title} {tuning.best}" + " (edge)" * tuning.at_edge for title, tuning in evaluation.tunings.items())
    costs = "; ".join(f"{name} {cost.time_ratio:.2g}" for name, cost in evaluation.costs.items())
    title = f"{evaluation.task}: {config.steps} inner steps, {config.seeds} seeds, mean ± standard error"
    caption = f"tuned learning rates: {rates or 'none'}" + f"\ntime of an update, Adam = 1: {costs}" * bool(costs)
    return rich_table(evaluation.rows, title, caption=caption)


def pictures(
    evaluation: Evaluation, records: Sequence[Mapping[str, Any]] = (), look: plots.Look = plots.LIGHT
) -> dict[str, bytes]:
    """The pictures of an evaluation as PNG files, by name: curves.png, held_out.png, meta_training.png where there are records."""
    task, window = evaluation.task, evaluation.config.smoothing
    found = {"curves.png": plots.png(plots.curves_figure(evaluation.curves, task=task, window=window, look=look))}
    if evaluation.curves[0].held_out:
        found["held_out.png"] = plots.png(held_out_figure(evaluation.curves, task=task, look=look))
    if records:
        found["meta_training.png"] = plots.png(meta_training_figure(records, title=f"meta-training on {task}", look=look))
    return found


_CAPTIONS = {
    "curves.png": "Training loss over inner steps: mean over seeds, band of one standard error.",
    "held_out.png": "On held-out data, at logarithmic and linear steps.",
    "meta_training.png": "The meta-training.",
}


def _page(
    evaluation: Evaluation,
    records: Sequence[Mapping[str, Any]],
    inner_steps: int | None,
    drawn: Mapping[tuple[bool, bool], Mapping[str, bytes]],
    configs: Mapping[str, Any],
) -> str:
    """report.html, with the pictures by page (dark, narrow) and name."""
    shown = [Picture(_CAPTIONS[name], {which: files[name] for which, files in drawn.items()}) for name in drawn[False, False]]
    config = evaluation.config
    return html_page(
        Page(
            title=f"{evaluation.task}: {config.steps:,} inner steps, {config.seeds} seeds",
            results=[[" ".join(cell) for cell in line] for line in race_table(evaluation.rows)],
            pictures=shown,
            tables={"Costs": cost_table(evaluation), "Tuning": tuning_table(evaluation)},
            lists={"Budget": _budget(evaluation, records, inner_steps), "Definitions": _definitions(evaluation)},
            details={
                "Config of the evaluation": {"seed": evaluation.seed, **dataclasses.asdict(config)},
                **{f"Config of the {name}": value for name, value in configs.items()},
                "Versions and device": environment(),
            },
        )
    )


def write_report(
    evaluation: Evaluation,
    run_dir: str | Path,
    *,
    records: Sequence[Mapping[str, Any]] = (),
    inner_steps: int | None = None,
    configs: Mapping[str, Any] = MappingProxyType({}),
) -> list[Path]:
    """Write the files of an evaluation, each atomically; those of an earlier one are replaced.

    Args:
      evaluation: what to report.
      run_dir: an existing directory.
      records: of the meta-training, in order, from `lopt.training.metrics.read`; without any there is no meta_training.png.
      inner_steps: in one outer step, all particles counted, for the budget in summary.md.
      configs: of the task or the run, by these names, as `lopt.config.to_dict` has them; they go into report.html and table.json.

    Returns:
      The paths written, summary first.
    """
    arrays = BytesIO()
    np.savez_compressed(arrays, **curve_arrays(evaluation))  # pyright: ignore[reportArgumentType]
    looks = {(dark, narrow): plots.Look(dark, narrow) for dark in (False, True) for narrow in (False, True)}
    drawn = {which: pictures(evaluation, records, look) for which, look in looks.items()}
    tables = [markdown_table(evaluation.rows), markdown(cost_table(evaluation)), markdown(tuning_table(evaluation))]
    files = {
        "summary.md": summary_markdown(evaluation, records, inner_steps).encode(),
        "report.html": _page(evaluation, records, inner_steps, drawn, configs).encode(),
        "table.md": ("\n\n".join(filter(None, tables)) + "\n").encode(),
        "table.csv": csv_text(evaluation).encode(),
        "table.json": json_text(evaluation, configs).encode(),
        **drawn[False, False],
        "curves.npz": arrays.getvalue(),
    }
    paths = [Path(run_dir) / name for name in files]
    for path, content in zip(paths, files.values(), strict=True):
        write_atomically(path, content)
    return paths
