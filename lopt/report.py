"""The files that an evaluation leaves in a run directory: curves.npz, curves.png, meta_training.png, summary.md."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lopt import plots
from lopt.baselines import Baseline, find_baseline
from lopt.config import write_atomically
from lopt.evaluate import Evaluation
from lopt.summary import markdown_table, rich_table

if TYPE_CHECKING:
    from rich.table import Table


def curve_arrays(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """What curves.npz holds, C competitors, K seeds, T steps, n learning rates tried.

    `names` [C]; `losses` [C, K, T] float32, of minibatches; `test/<metric>` [C, K]; `seconds_per_step` [C]; `target` [], the loss
    to reach; `window` [], the steps that final losses are averaged over; `tuning/<baseline>` [n, 2], learning rate and score.
    """
    curves = evaluation.curves
    return {
        "names": np.array([curve.name for curve in curves]),
        "losses": np.stack([curve.losses for curve in curves]),
        **{f"test/{metric}": np.stack([curve.test[metric] for curve in curves]) for metric in curves[0].test},
        "seconds_per_step": np.array([curve.seconds_per_step for curve in curves]),
        "target": np.array(evaluation.target),
        "window": np.array(evaluation.config.smoothing),
        **{f"tuning/{title}": np.array(tuning.tried) for title, tuning in evaluation.tunings.items()},
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


def summary_markdown(evaluation: Evaluation, records: Sequence[Mapping[str, Any]] = (), inner_steps: int | None = None) -> str:
    """The text of summary.md: table, tuned learning rates, budget, and how each figure is defined.

    Args:
      evaluation: what to report.
      records: of the meta-training, in order, from `lopt.metrics.read`.
      inner_steps: in one outer step, all particles counted; the budget of the meta-training is stated if both are given.
    """
    config, window = evaluation.config, evaluation.config.smoothing
    reference = next(curve.name for curve in evaluation.curves if curve.reference)
    tunings = []
    for title, tuning in evaluation.tunings.items():
        edge = " This is the edge of what was tried: a better one may lie beyond." if tuning.at_edge else ""
        tried = ", ".join(f"{rate:g}: {score:.4g}" for rate, score in tuning.tried)
        tunings.append(f"- {title}: **{tuning.learning_rate:g}**.{edge} Tried (learning rate: score): {tried}.")
    tunings += [f"- {baseline.title}: **{baseline.learning_rate:g}**, as given." for baseline in _given(evaluation)]
    budget = [f"race: {config.seeds} seeds of {config.steps:,} inner steps each for every optimizer"]
    if evaluation.tunings:
        budget.append(
            f"tuning: {config.tuning_seeds} other seeds of {config.steps:,} inner steps for each learning rate that was tried"
        )
    if records and inner_steps is not None:
        budget = [f"meta-training: {_meta_training(records, inner_steps)}", *budget]
    return f"""# {evaluation.task}: {config.steps} inner steps, {config.seeds} seeds

{markdown_table(evaluation.rows)}

![training loss over inner steps](curves.png)

## Learning rates

Constant over a training; the score of a learning rate is the mean final training loss over the tuning seeds, or `inf` if any of
them diverged.

{chr(10).join(tunings)}

## Budget

{chr(10).join(f"- {line}" for line in budget)}

## Definitions

- ± is the standard error over seeds: the sample standard deviation over the root of their number.
- A seed is an initialisation that meta-training did not see, with its own sequence of minibatches; both are the same for all
  optimizers.
- Final training loss: mean of the last {window} minibatch losses of a seed. The loss of a minibatch is the one whose gradient is
  taken, before the step.
- Test figures: on the whole test split, after the last step.
- Steps to {reference}'s final loss: the first number of steps after which the mean of a seed's last {window} minibatch losses
  is at most {evaluation.target:.4g}, the mean final training loss of {reference}; the mean is over the seeds that reach it within
  {config.steps} steps, and those that never do are counted. It cannot be less than {window}.
- Speed-up: {config.steps} over those steps, averaged over the same seeds.
- Diverged: a loss of the seed was not finite. Such seeds are left out of means, which then begin with `nan`.
- ms / step: wall time of all seeds together over the number of their inner steps, without compilation, on the machine that ran
  this.
"""


def terminal_table(evaluation: Evaluation) -> "Table":
    """The table of a race for a terminal, with the learning rates that the baselines were given."""
    config = evaluation.config
    rates = ", ".join(f"{title} {tuning.learning_rate:g}" for title, tuning in evaluation.tunings.items()) or "none"
    title = f"{evaluation.task}: {config.steps} inner steps, {config.seeds} seeds, mean ± standard error"
    return rich_table(evaluation.rows, title, caption=f"tuned learning rates: {rates}")


def write_report(
    evaluation: Evaluation,
    run_dir: str | Path,
    *,
    records: Sequence[Mapping[str, Any]] = (),
    inner_steps: int | None = None,
) -> list[Path]:
    """Write the files of an evaluation, each atomically; those of an earlier one are replaced.

    Args:
      evaluation: what to report.
      run_dir: an existing directory.
      records: of the meta-training, in order, from `lopt.metrics.read`; without any there is no meta_training.png.
      inner_steps: in one outer step, all particles counted, for the budget in summary.md.

    Returns:
      The paths written, summary first.
    """
    arrays = BytesIO()
    np.savez_compressed(arrays, **curve_arrays(evaluation))  # pyright: ignore[reportArgumentType]
    figure = plots.curves_figure(evaluation.curves, task=evaluation.task, window=evaluation.config.smoothing)
    files = {
        "summary.md": summary_markdown(evaluation, records, inner_steps).encode(),
        "curves.png": plots.png(figure),
        "curves.npz": arrays.getvalue(),
    }
    if records:
        figure = plots.meta_training_figure(records, title=f"meta-training on {evaluation.task}")
        files["meta_training.png"] = plots.png(figure)
    paths = [Path(run_dir) / name for name in files]
    for path, content in zip(paths, files.values(), strict=True):
        write_atomically(path, content)
    return paths
