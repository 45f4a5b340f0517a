"""A suite on one page, and its figures for programs."""

import csv
import dataclasses
import io
import math
from pathlib import Path

import numpy as np

from lopt.config import to_dict, write_atomically
from lopt.evaluation.aggregates import log_ratios, suite_table
from lopt.evaluation.suite import SuiteResult
from lopt.evaluation.summary import markdown
from lopt.reporting import plots
from lopt.reporting.html_report import Page, Picture, html_page
from lopt.reporting.plots_suite import profile_figure
from lopt.reporting.tables import plain_json
from lopt.runtime.environment import environment

CAPTION = (
    "Left: the part of all runs (a seed of a task) in which an optimizer ends within a factor of the lowest final training loss of all: "
    "higher and further left is better. Right: final training loss over the reference's at the same number of trials: lower is better."
)


def definitions(result: SuiteResult) -> list[str]:
    """What was done, and what the figures are, as sentences."""
    config = result.config
    budgets = ", ".join(map(str, config.trials))
    return [
        f"Every optimizer with a learning rate of the user's has the same trials of it on every task: the tables are for {budgets}. The "
        "first trial is the rate that its authors' examples have; each further one depends on the trials before, half decades "
        f"downhill and then closer. A trial is {config.tuning_seeds} seed{'s' * (config.tuning_seeds > 1)} of T steps with the schedule "
        f"{config.schedule.replace('_', ' ')}; its score is the final training loss. What has no such rate is raced as it is.",
        f"Then it is raced from {config.seeds} other seeds, the same weights and batches for all. Final loss: the mean of a run's last "
        f"{config.window} minibatch losses (T / 10 where that is fewer). Held-out loss: on batches never trained on, after T steps.",
        f"Ratios: the loss over that of {config.reference} in the same run at the same trials; the interquartile mean of their logarithms "
        "over all runs, as a geometric mean. In parentheses the 95% interval of a bootstrap over tasks and seeds. A run that diverged "
        "counts as infinite, and is counted.",
        f"Rank: among these optimizers, mean over runs. Speed-up: the steps that {config.reference} takes to its own final loss over those "
        "of the optimizer in the same run, 0 if it never gets there; interquartile mean. Ahead on: tasks whose mean ratio is below 1. "
        "Time a step: wall time with the task's gradient, as ratio, geometric mean over tasks; other work on the machine disturbs it.",
    ]


def task_table(result: SuiteResult, trials: int) -> list[list[str]]:
    """One line a task at a budget: the mean final loss of every optimizer, and its setting; its header first."""
    lines = [["task", "kind", "weights", "T", *result.optimizers]]
    for problem, kind in result.kinds.items():
        here = [result.outcomes[problem, name] for name in result.optimizers if (problem, name) in result.outcomes]
        if not here:
            continue
        cells = [_loss_cell(result, problem, name, trials) for name in result.optimizers]
        lines.append([problem, kind, f"{here[0].weights:,}", f"{result.steps[problem]:,}", *cells])
    return lines


def _loss_cell(result: SuiteResult, problem: str, name: str, trials: int) -> str:
    outcome = result.outcomes.get((problem, name))
    if outcome is None:
        return "not raced yet"
    losses = result.losses(name, trials, [problem])[0]
    bad = int(np.isnan(losses).sum())
    setting = outcome.settings[outcome.trials.index(trials)]
    loss = "diverged" if bad == len(losses) else f"{np.nanmean(losses):.4g}" + (f", {bad} diverged" if bad else "")
    return f"{loss} ({setting})" if setting else loss


def suite_json(result: SuiteResult) -> str:
    """All figures; null where there is no finite number."""
    budgets = {}
    for trials in result.config.trials if result.complete else ():
        budgets[str(trials)] = [dataclasses.asdict(one) for one in result.aggregates(trials)]
    runs = []
    for (problem, name), outcome in result.outcomes.items():
        for index, trials in enumerate(outcome.trials):
            losses = result.losses(name, trials, [problem])[0]
            about = {
                "task": problem,
                "kind": result.kinds[problem],
                "optimizer": name,
                "trials": trials,
                "steps": result.steps[problem],
            }
            about |= {
                "setting": outcome.settings[index],
                "seconds_per_step": outcome.seconds_per_step,
                "weights": outcome.weights,
            }
            runs.append(about | {"final_losses": losses.tolist(), "held_out": outcome.held_out[index].tolist()})
    whole = {"aggregates": budgets, "runs": runs, "config": to_dict(result.config), "environment": environment()}
    return plain_json(whole)


def ratios_csv(result: SuiteResult) -> str:
    """One line a run, with its final loss over the reference's."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["task", "optimizer", "trials", "seed", "final_loss", "ratio"])
    reference = result.config.reference
    for problem in result.complete:
        for trials in result.config.trials:
            base = result.losses(reference, trials, [problem])[0]
            for name in result.optimizers:
                losses = result.losses(name, trials, [problem])[0]
                for seed, (loss, ratio) in enumerate(zip(losses, np.exp(log_ratios(losses, base)), strict=True)):
                    writer.writerow([problem, name, trials, seed, "" if math.isnan(loss) else f"{loss:.6g}", f"{ratio:.6g}"])
    return text.getvalue()


def write_suite(result: SuiteResult, directory: Path) -> list[Path]:
    """Write report.html, summary.md, ratios.csv, suite.json and profile.png, each atomically.

    Args:
      result: with at least one task that every optimizer was raced on.
      directory: an existing one.

    Returns:
      The paths written, the page first.

    Raises:
      ValueError: if there is no such task.
    """
    config, done = result.config, len(result.complete)
    tables = {trials: suite_table(result.aggregates(trials), config.reference, done) for trials in reversed(config.trials)}
    most = config.trials[-1]
    title = f"{len(result.optimizers)} optimizers on {done} tasks, {most} trials each"
    if done < len(result.kinds):
        title += f" ({len(result.kinds) - done} tasks are still to come)"
    looks = {(dark, narrow): plots.Look(dark, narrow) for dark in (False, True) for narrow in (False, True)}
    drawn = {which: plots.png(profile_figure(result, look)) for which, look in looks.items()}
    others = {f"With {_trials(trials)}": lines for trials, lines in tables.items() if trials != most}
    losses = {f"Final training loss of each task, {_trials(most)} (learning rate)": task_table(result, most)}
    page = Page(
        title=title,
        results=tables[most],
        pictures=[Picture(CAPTION, drawn)],
        tables=others | losses,
        lists={"What was done": definitions(result)},
        details={"Config of the suite": to_dict(config), "Versions and device": environment()},
    )
    body = [f"# {title}", f"![{CAPTION}](profile.png)"]
    body += [f"## {_trials(trials).capitalize()}\n\n{markdown(lines)}" for trials, lines in tables.items()]
    body += [f"## {name}\n\n{markdown(lines)}" for name, lines in losses.items()]
    body += ["## What was done", "\n".join(f"- {line}" for line in definitions(result))]
    files = {
        "report.html": html_page(page).encode(),
        "summary.md": ("\n\n".join(body) + "\n").encode(),
        "ratios.csv": ratios_csv(result).encode(),
        "suite.json": suite_json(result).encode(),
        "profile.png": drawn[False, False],
    }
    for name, content in files.items():
        write_atomically(directory / name, content)
    return [directory / name for name in files]


def _trials(count: int) -> str:
    return f"{count} trial{'s' * (count > 1)}"
