"""A comparison from its plan to its report."""

from collections.abc import Collection
from pathlib import Path

from rich.console import Console

from lopt.comparison.config import Plan, Run
from lopt.comparison.races import Bench
from lopt.comparison.report import write_comparison
from lopt.comparison.state import state_of
from lopt.comparison.work import Found, carry_out, collect


def compare(
    plan: Plan,
    out: str | Path,
    *,
    labels: Collection[str] = (),
    train: bool = True,
    cache: Path | None = None,
    console: Console | None = None,
) -> tuple[Found, list[Path]]:
    """Do what is left of a plan and write its report, which is written after each seed too.

    Args:
      plan: the comparison.
      out: directory of the report.
      labels: of the learned optimizers to work on; all, if empty. The report has all there are.
      train: False: meta-train nothing; what has a checkpoint is raced and drawn.
      cache: directory of the searches that tuning made; None: none is kept.
      console: where progress is shown; standard output by default.

    Returns:
      What there is of the comparison, and the files of the report.

    Raises:
      ValueError: naming a label that is no rival, or as `carry_out` and `collect`.
      InterruptedPlanError: after SIGINT or SIGTERM.
    """
    known = [rival.label for rival in plan.config.rivals]
    unknown = [label for label in labels if label not in known]
    if unknown:
        raise ValueError(f"no rival '{unknown[0]}' in {plan.task}; its rivals are {', '.join(known)}")
    chosen, bench = labels or known, Bench(plan, cache)

    def raced_now(run: Run) -> bool:
        # A run that another process may be on is taken only where the race of its theta is kept.
        return run.label in chosen and (not train or state_of(run).is_over(run.experiment.outer_steps))

    def found() -> Found:
        return collect(bench, raced_now)

    if train:
        carry_out(bench, chosen, console=console, after_seed=lambda: write_comparison(found(), out))
    last = found()
    return last, write_comparison(last, out)
