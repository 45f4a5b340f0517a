"""Compare learned optimizers on any task: each meta-trained from several seeds, raced against tuned rivals, drawn in one picture."""

import argparse
import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lopt.comparison.compare import add_options, compare_by
from lopt.comparison.config import Agenda, ComparisonConfig, make_agenda
from lopt.config import ConfigError, load_file
from lopt.runtime.program import DEBUG_HELP, prepare, reporting_errors, take_debug
from lopt.task.named import task_config

DESCRIPTION = f"""\
Meta-train every rival of a config file from several seeds, race them against tuned optimizers by hand, and draw the result with the
budget written in it. The config is a lopt.comparison.ComparisonConfig: rivals by label, and budgets, each an experiment and a number of
seeds. examples/comparison.py is one, and docs/comparison.md explains it.

The order of work is seed 0 of all rivals, then seed 1, so that a part is a comparison too. Ctrl-C saves, and the same command goes on;
what is done is not done again. Several processes may work on one comparison: each leaves alone the run that another is on.

Runs are RUNS/NAME-BUDGET-RIVAL-SEED, as scripts/meta_train.py writes them, NAME that of the config file. The report is written after
each seed:
  comparison.png        training loss over inner steps, held-out loss over outer steps
  README.md             picture, table, budget, devices, definitions
  table.md .csv .json   the figures;  curves.npz  the races;  metrics.npz  the meta-trainings
  theta/                the meta-parameters that were raced

Runs that are there already are pooled by: python scripts/evaluate.py --run-dir runs/a-0 runs/a-1 runs/b-0 runs/b-1

{DEBUG_HELP}"""
EPILOG = """\
examples:
  python scripts/compare.py --config examples/comparison.py --budget smoke
  python scripts/compare.py --config examples/comparison.py --task my_task.py:make_task
  python scripts/compare.py --config mine.py --rivals UNF DeepSets --draw"""


def argument_parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="compare.py", description=DESCRIPTION, epilog=EPILOG, formatter_class=formatter, allow_abbrev=False
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="a Python file that defines `config`")
    parser.add_argument("--budget", metavar="NAME", help="one of the config's (default: its first)")
    text = (
        "the task, in place of the config's: a name, or module:function or path/to/file.py:function, which makes one of your own"
    )
    parser.add_argument("--task", metavar="NAME", help=text)
    add_options(parser, "runs/compare")
    text = "where to write the report (default: RUNS/NAME-BUDGET-report)"
    parser.add_argument("--out", type=Path, metavar="DIR", help=text)
    return parser


def agenda_of(args: argparse.Namespace) -> Agenda:
    config = load_file(args.config)
    if not isinstance(config, ComparisonConfig):
        raise ConfigError(
            f"{args.config}: config is a {type(config).__name__}, not a lopt.comparison.ComparisonConfig with rivals and budgets; "
            "examples/comparison.py is one, and one experiment alone is for scripts/meta_train.py"
        )
    name, budget = re.sub(r"\W+", "_", args.config.stem), args.budget or config.budgets[0].name
    command = f"python scripts/compare.py --config {args.config} --budget {budget}"
    if args.task is not None:
        task = task_config(args.task)
        budgets = [
            dataclasses.replace(one, experiment=dataclasses.replace(one.experiment, task=task), title=args.task)
            for one in config.budgets
        ]
        config = dataclasses.replace(config, budgets=tuple(budgets))
        name, command = f"{name}-{re.sub(r'[^A-Za-z0-9]+', '_', args.task).strip('_')}", f"{command} --task {args.task}"
    return make_agenda(name, config, budget, args.runs_dir, command=command, picture="comparison.png")


def main(argv: Sequence[str] | None = None) -> int:
    argv, debug = take_debug(argv)
    args, console = argument_parser().parse_args(argv), Console()
    with reporting_errors("compare.py", debug=debug):
        prepare()
        agenda = agenda_of(args)
        out = args.out or args.runs_dir / f"{agenda.name}-report"
        return compare_by(args, agenda, out, console)


if __name__ == "__main__":
    sys.exit(main())
