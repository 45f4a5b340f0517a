"""A comparison from its agenda to its report, from Python and as a program."""

import argparse
import sys
from collections.abc import Collection
from pathlib import Path

from rich.console import Console

from lopt.comparison.config import Agenda, Run
from lopt.comparison.races import Bench
from lopt.comparison.report import short_table, write_comparison
from lopt.comparison.state import state_of
from lopt.comparison.work import Found, InterruptedComparisonError, carry_out, collect
from lopt.config.caches import cache_root
from lopt.reporting.tables import rich_lines


def compare(
    agenda: Agenda,
    out: str | Path,
    *,
    labels: Collection[str] = (),
    train: bool = True,
    cache: Path | None = None,
    console: Console | None = None,
) -> tuple[Found, list[Path]]:
    """Do what is left of an agenda and write its report, which is written after each seed too.

    Args:
      agenda: the comparison.
      out: directory of the report.
      labels: of the learned optimizers to work on; all, if empty. The report has all there are.
      train: False: meta-train nothing; what has a checkpoint is raced and drawn.
      cache: directory of the searches that tuning made; None: none is kept.
      console: where progress is shown; standard output by default.

    Returns:
      What there is of the comparison, and the files of the report.

    Raises:
      ValueError: naming a label that is no rival, or as `carry_out` and `collect`.
      InterruptedComparisonError: after SIGINT or SIGTERM.
    """
    known = [rival.label for rival in agenda.config.rivals]
    unknown = [label for label in labels if label not in known]
    if unknown:
        raise ValueError(f"no rival '{unknown[0]}' in {agenda.task}; its rivals are {', '.join(known)}")
    chosen, bench = labels or known, Bench(agenda, cache)

    def raced_now(run: Run) -> bool:
        # A run that another process may be on is taken only where the race of its theta is kept.
        return run.label in chosen and (not train or state_of(run).is_over(run.experiment.outer_steps))

    def found() -> Found:
        return collect(bench, raced_now)

    if train:
        carry_out(bench, chosen, console=console, after_seed=lambda: write_comparison(found(), out))
    last = found()
    return last, write_comparison(last, out)


def add_options(parser: argparse.ArgumentParser, runs_dir: str) -> None:
    """The options of a program that carries out an agenda: where its runs lie, and what of it is done now."""
    parser.add_argument("--runs-dir", type=Path, default=Path(runs_dir), metavar="RUNS", help=f"default: {runs_dir}")
    text = "work on these alone (default: all); the report has all there are"
    parser.add_argument("--rivals", nargs="+", default=[], metavar="LABEL", help=text)
    parser.add_argument("--draw", action="store_true", help="meta-train nothing: race and draw what is there")


def compare_by(args: argparse.Namespace, agenda: Agenda, out: Path, console: Console) -> int:
    """`compare` as the options of `add_options` say, its table and files on the terminal; the exit status of the program."""
    cache = cache_root() / "tuning"
    try:
        found, paths = compare(agenda, out, labels=args.rivals, train=not args.draw, cache=cache, console=console)
    except (InterruptedComparisonError, KeyboardInterrupt) as error:
        print(f"{str(error) or 'interrupted'}; the same command goes on from there", file=sys.stderr)
        return 130
    console.print(rich_lines(short_table(found), f"{agenda.title}, budget {agenda.budget.name}"))
    for path in paths:
        console.print(str(path), soft_wrap=True)
    return 0
