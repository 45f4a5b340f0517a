"""Race optimizers on a task: trained ones, and rivals by hand, tuned first."""

import argparse
import difflib
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from lopt.config import ConfigError, parse_part, to_dict
from lopt.config.caches import cache_root
from lopt.evaluation.evaluate import Competitor, Evaluation, EvaluationConfig, evaluate
from lopt.pretrained.bind import bind
from lopt.pretrained.load import available, is_trained, open_trained
from lopt.reporting.report import terminal_table, write_report
from lopt.runtime.program import DEBUG_HELP, prepare, reporting_errors, take_debug
from lopt.runtime.text import plain
from lopt.task.base import Problem, TaskConfig
from lopt.task.named import task_config, task_names

READERS = {TaskConfig: task_config}
OPTIMIZER_HELP = (
    "rivals: adam, sgdm or the name of an optimizer of optax, with a tuned learning rate or as NAME:RATE with that one; or a trained one: "
    "the name of a shipped one, a run directory, a folder with a card, or hf://owner/name"
)
DESCRIPTION = f"""\
Race optimizers on a task of your own, from the same weights and on the same batches; those by hand are tuned first. Writes into DIR
report.html, summary.md, table.md .csv .json, curves.png, held_out.png and curves.npz.

{DEBUG_HELP}"""
EPILOG = """\
examples:
  python -m lopt evaluate --task my_task.py:make_task --optimizer lopt-direction
  python -m lopt evaluate --task my_task.py:make_task --task.width 64 --optimizer adam lion runs/mine --steps 500 --seeds 5"""


def trained_optimizer(source: str, problem: Problem, which: str = "best", trust: bool = False) -> Competitor:
    """A shipped optimizer, or one of a run, a folder or a repository, on a task that need not be one it was trained on.

    Args:
      source: as of `lopt.load`.
      problem: to race on.
      trust: as of `lopt.load`.
      which: theta of a run: `best` by its held-out evaluations, if it had any, or `newest`.

    Raises:
      ValueError: if its theta is not compatible with the task's weights.
    """
    trained = open_trained(source, best=which == "best", trust=trust)
    try:
        optimizer = bind(trained, problem.spec, problem.param_shapes())
    except ValueError as error:
        raise ValueError(f"'{source}' is not compatible with the weights of '{problem.name}': {error}") from error
    return Competitor(source, optimizer.opt_fn, trained.theta)


def by_hand_and_trained(names: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """The names that are of rivals by hand, and those of trained optimizers.

    Raises:
      ConfigError: naming the shipped optimizer that a name is close to.
    """
    trained = [name for name in names if is_trained(name)]
    by_hand = tuple(name for name in names if name not in trained)
    for name in by_hand:
        near = difflib.get_close_matches(name, available(), n=1, cutoff=0.8)
        if near:
            raise ConfigError(f"there is no optimizer '{name}'; did you mean the shipped '{near[0]}'?")
    return by_hand, trained


def place_of(task: str) -> Path:
    """Where an evaluation of a task is written, unless it is said: one of somebody's own by its function's name."""
    return Path("runs") / "evaluate" / re.sub(r"[^\w.-]+", "-", task.rpartition("/")[2].replace(".py:", "-"))


def say(console: Console, text: str) -> None:
    """Print a line, which may hold names of anybody's, as it is."""
    console.print(plain(text), soft_wrap=True, markup=False, highlight=False)


def on_task(
    config: TaskConfig,
    evaluation: EvaluationConfig,
    trained: Sequence[str],
    *,
    out: Path,
    console: Console,
    cache: Path | None,
    seed: int = 0,
    which: str = "best",
    trust: bool = False,
) -> tuple[Evaluation, list[Path]]:
    """Race trained optimizers and the rivals of `evaluation` on a task, and write the report into a directory."""
    problem = config.make()
    learned = [trained_optimizer(source, problem, which, trust) for source in trained]
    found = evaluate(problem, learned, evaluation, seed, partial(say, console), cache)
    out.mkdir(parents=True, exist_ok=True)
    return found, write_report(found, out, configs={"task": to_dict(config)})


def show(console: Console, evaluation: Evaluation, paths: Sequence[Path]) -> None:
    """The table of an evaluation, and the files of its report."""
    console.print(terminal_table(evaluation))
    for path in paths:
        say(console, str(path))


def _parse(argv: Sequence[str], prog: str) -> tuple[argparse.Namespace, TaskConfig]:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog=prog, description=DESCRIPTION, epilog=EPILOG, formatter_class=formatter, allow_abbrev=False
    )
    text = (
        "module:function or path/to/file.py:function, which makes the task; its parameters are options, such as --task.width 64"
    )
    parser.add_argument("--task", required=True, metavar="NAME", help="; ".join([text, *task_names()]))
    parser.add_argument(
        "--optimizer", nargs="+", default=[], metavar="OPT", help=f"{OPTIMIZER_HELP} (by hand, default: adam sgdm)"
    )
    default = EvaluationConfig()
    for option, text, value in (
        ("--steps", "inner steps of each training", default.steps),
        ("--seeds", "initialisations raced from", default.seeds),
        ("--tuning-seeds", "initialisations that each learning rate is tried on", default.tuning_seeds),
        ("--seed", "root of all random numbers", 0),
    ):
        parser.add_argument(option, type=int, default=value, metavar="N", help=f"{text} (default: {value})")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: runs/evaluate/NAME)")
    args, rest = parser.parse_known_args(argv)
    try:
        return args, parse_part(task_config(args.task), rest, "task", prog=prog, description=DESCRIPTION, readers=READERS)
    except ConfigError as error:
        parser.error(f"--task: {error}")


def main(argv: Sequence[str] | None = None, *, prog: str = "python -m lopt evaluate") -> None:
    """The command; `prog` is what it is called by."""
    argv, debug = take_debug(argv)
    with reporting_errors(prog, debug=debug):
        args, config = _parse(argv, prog)
        by_hand, trained = by_hand_and_trained(args.optimizer)
        given: dict[str, Any] = {"baselines": by_hand} if by_hand else {}
        evaluation = EvaluationConfig(steps=args.steps, seeds=args.seeds, tuning_seeds=args.tuning_seeds, **given)
        prepare()
        console, cache = Console(), cache_root() / "tuning"
        out = args.out or place_of(args.task)
        show(console, *on_task(config, evaluation, trained, out=out, console=console, cache=cache, seed=args.seed))
