"""Race optimizers on a task: a meta-trained one against tuned rivals and itself before, or any of optax's on any task."""

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from lopt.commands.evaluate import OPTIMIZER_HELP, READERS, by_hand_and_trained, on_task, place_of, say, show, trained_optimizer
from lopt.comparison.compare import compare
from lopt.comparison.config import agenda_of_runs
from lopt.comparison.report import short_table
from lopt.config import ConfigError, load_run, parse_part, to_dict
from lopt.evaluation.baselines import SCHEDULES
from lopt.evaluation.evaluate import Evaluation, EvaluationConfig, evaluate
from lopt.evaluation.generalization import KINDS, conditions, dataset_of, generalization_table, generalize, stages
from lopt.evaluation.race import Competitor
from lopt.reporting.generalization_report import write_generalization
from lopt.reporting.report import write_report
from lopt.reporting.tables import rich_lines
from lopt.runtime.program import DEBUG_HELP, at_least, prepare, reporting_errors, take_debug
from lopt.runtime.progress import Stages
from lopt.task.base import Problem, TaskConfig
from lopt.task.families import MixtureConfig
from lopt.task.named import task_config, task_names
from lopt.training import checkpoint, metrics
from lopt.training.mixture import optimizer_of, set_up
from lopt.training.trainer import initial_theta
from tasks.datasets import cache_root
from tasks.datasets.local import local_alternatives

DESCRIPTION = """\
With --run-dir, race the optimizer that a run has meta-trained, on initialisations it has not seen, against itself before
meta-training and against baselines that are tuned first. With --task, race any optimizers on any task; no run is needed. All
start from the same weights and see the same batches.

Writes into RUN or DIR, replacing an earlier evaluation's:
  report.html         all that follows on one page, for any browser; docs/evaluation.md tells how to read it
  summary.md          table: final training loss, test metrics, steps to the first baseline's final loss; how each is defined
  table.md .csv .json the figures as tables
  curves.png          training loss over inner steps, mean and standard error over seeds
  held_out.png        loss and metrics on held-out data
  curves.npz          the curves and all other figures as arrays
  meta_training.png   with --run-dir: meta-loss, learned scalars and meta-gradient over outer steps

With --generalize, race beyond the horizon (5 T), on other widths, data, batch sizes and scales of the initial weights, the baselines
tuned anew under each; it writes generalization.html .md .csv .json and .png, the heat map. What it costs grows with --seeds,
--tuning-seeds, --steps and the conditions named.
"""
TASK_HELP = "a task: {}; or of your own, by the function that makes it: module:function or path/to/file.py:function"
EPILOG = f"""\
{DEBUG_HELP}
With --task, every field of the task is an option too: --task NAME --help lists them.
Compiled programs are kept below ~/.cache/lopt; LOPT_COMPILATION_CACHE=DIR moves them, LOPT_COMPILATION_CACHE=off keeps none.
What baselines were tuned to is kept there too, in tuning/.

examples:
  python scripts/evaluate.py --run-dir runs/digits --steps 300 --seeds 10
  python scripts/evaluate.py --run-dir runs/unf-0 runs/unf-1 runs/sgdm-0 runs/sgdm-1
  python scripts/evaluate.py --task mlp --optimizer adam sgdm adamw:1e-3 --steps 300 --seeds 3 --task.hidden 64 64
  python scripts/evaluate.py --task mlp --optimizer adam lopt-direction-unf runs/digits --steps 300
  python scripts/evaluate.py --task my_task.py:make_task --task.width 64 --optimizer adam runs/digits
  python scripts/evaluate.py --run-dir runs/digits --generalize horizon width --seeds 3 --tuning-seeds 2
  python scripts/evaluate.py --task mlp --optimizer adam sgdm nadamw lion muon --steps 300 --refinements 2
      --momenta 0.5 0.9 0.99 --schedules constant cosine warmup_cosine"""


def argument_parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="evaluate.py",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=formatter,
        allow_abbrev=False,
        add_help=False,  # the fields of a task are to be part of it
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--run-dir",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="directory that scripts/meta_train.py wrote. Of several, on one task, those that differ by their seed alone are pooled: "
        "figures are means over meta-seeds, with their standard errors",
    )
    what.add_argument("--task", metavar="NAME", help=TASK_HELP.format(", ".join(task_names())))
    parser.add_argument(
        "--optimizer",
        nargs="+",
        metavar="OPT",
        help=f"{OPTIMIZER_HELP} (by hand, default: the run's evaluation.baselines; adam sgdm)",
    )
    default = EvaluationConfig()
    for option, metavar, text, value in (
        ("--steps", "T", "inner steps of each training", default.steps),
        ("--seeds", "K", "initialisations raced from", default.seeds),
        ("--tuning-seeds", "K", "initialisations that each learning rate is tried on", default.tuning_seeds),
    ):
        field = option.strip("-").replace("-", "_")
        text = f"{text} (default: the run's evaluation.{field}; {value})"
        parser.add_argument(option, type=at_least(1), metavar=metavar, help=text)
    tuned = "(default: the run's evaluation.{}; {})"
    text = "how often the distance between learning rates is halved around the best of the grid "
    parser.add_argument(
        "--refinements", type=at_least(0), metavar="N", help=text + tuned.format("refinements", default.refinements)
    )
    text = "momenta that SGDM is tuned over " + tuned.format("momenta", 0.9)
    parser.add_argument("--momenta", nargs="+", type=float, metavar="M", help=text)
    text = "schedules that learning rates are tuned with " + tuned.format("schedules", *default.schedules)
    parser.add_argument("--schedules", nargs="+", choices=tuple(SCHEDULES), help=text)
    parser.add_argument("--retune", action="store_true", help="neither read nor keep what baselines are tuned to")
    text = "race under other conditions instead, all of them or those named: "
    parser.add_argument("--generalize", nargs="*", choices=KINDS, metavar="KIND", help=text + ", ".join(KINDS))
    text = "other data to generalize to (default: what is on this machine of the same kind)"
    parser.add_argument("--data", nargs="+", metavar="NAME", help=text)
    parser.add_argument("--seed", type=int, help="root of all random numbers (default: the run's seed; 0)")
    parser.add_argument(
        "--checkpoint",
        choices=("best", "newest"),
        default="best",
        help="which theta of a run: the best by its held-out evaluations, if it had any, or the newest (default: best)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: RUN; runs/evaluate/NAME)")
    text = "import classes and functions that a run's config names although they are not lopt's and the run was not made here"
    parser.add_argument("--trust", action="store_true", help=text)
    parser.add_argument("-h", "--help", action="store_true", help="show this and, with --task NAME, the fields of the task")
    return parser


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, TaskConfig | None]:
    """The program's arguments and, with --task, the config of the task."""
    argv, parser = list(sys.argv[1:] if argv is None else argv), argument_parser()
    wants_help = not {"-h", "--help"}.isdisjoint(argv)
    if wants_help and not any(argument.partition("=")[0] == "--task" for argument in argv):
        parser.print_help()
        sys.exit(0)
    args, rest = parser.parse_known_args(argv)
    if args.data is not None and "data" not in (KINDS if args.generalize == [] else args.generalize or ()):
        parser.error("--data names what --generalize data races on; give that too")
    if args.task is not None:
        fields = ["--help"] if wants_help else rest
        try:
            config = task_config(args.task)
            return args, parse_part(config, fields, "task", prog="evaluate.py", description=parser.format_help(), readers=READERS)
        except ConfigError as error:
            parser.error(f"--task: {error}")
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    several = len(args.run_dir) > 1
    unused = [
        option for option, value in (("--generalize", args.generalize), ("--seed", args.seed)) if several and value is not None
    ]
    unused += ["--checkpoint"] if several and args.checkpoint != "best" else []
    if unused:
        parser.error(f"{unused[0]} is for one run, not for several that are pooled")
    return args, None


def overrides(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """What of the evaluation's config the arguments give, and which of the rivals are trained optimizers."""
    fields = ("steps", "seeds", "tuning_seeds", "refinements", "momenta", "schedules")
    given = {name: getattr(args, name) for name in fields if getattr(args, name) is not None}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    by_hand, trained = by_hand_and_trained(args.optimizer or ())
    if by_hand:  # what is trained races against the default rivals, unless others are named
        given["baselines"] = by_hand
    return given, trained


def kept_searches(args: argparse.Namespace) -> Path | None:
    return None if args.retune else cache_root() / "tuning"


def of_task(args: argparse.Namespace, config: TaskConfig, console: Console) -> Iterator[tuple[Evaluation, list[Path]]]:
    given, trained = overrides(args)
    yield on_task(
        config,
        EvaluationConfig(**given),
        trained,
        out=args.out or place_of(args.task),
        console=console,
        cache=kept_searches(args),
        seed=args.seed or 0,
        which=args.checkpoint,
        trust=args.trust,
    )


def pooled(args: argparse.Namespace, argv: Sequence[str], console: Console) -> list[Path]:
    """A comparison of runs, those that differ by their seed alone pooled; `argv` is what its report says to make it again."""
    given, trained = overrides(args)
    if trained:
        raise ConfigError(
            f"'{trained[0]}' cannot race against pooled runs; give runs as --run-dir, and optimizers by hand as --optimizer"
        )
    out = args.out or Path("runs") / "evaluate" / "pooled"
    command = shlex.join(["python", "scripts/evaluate.py", *argv])
    agenda = agenda_of_runs(args.run_dir, out / "races", command, given)
    found, paths = compare(agenda, out, train=False, cache=kept_searches(args), console=console)
    console.print(rich_lines(short_table(found), agenda.title))
    return paths


def of_run(args: argparse.Namespace, console: Console) -> Iterator[tuple[Evaluation, list[Path]]]:
    """One evaluation; of a run over several tasks, one of each, in a directory of its own."""
    (run_dir,) = args.run_dir
    experiment = load_run(run_dir, trust=args.trust)
    theta, step, _ = checkpoint.chosen_theta(run_dir, best=args.checkpoint == "best")
    done = (checkpoint.steps(run_dir) or [step])[-1]  # best/ may have been handed on alone
    # A run that was killed may have logged outer steps after its newest checkpoint, which this theta has not seen.
    records = [record for record in metrics.read(run_dir) if record["outer_step"] <= done]
    given, trained = overrides(args)
    config: EvaluationConfig = dataclasses.replace(experiment.evaluation, **given)
    setup = set_up(experiment.task, experiment.optimizer, experiment.estimator, experiment.unroll)
    seed = experiment.seed if args.seed is None else args.seed
    title = "meta-trained" if step == done else f"meta-trained, best (outer step {step})"
    for name, problem in setup.problems.items():
        optimizer = optimizer_of(experiment.optimizer, problem)
        competitors = [
            Competitor(title, optimizer.opt_fn, theta),
            Competitor("before meta-training", optimizer.opt_fn, initial_theta(experiment.seed, setup.optimizer)),
            *(trained_optimizer(source, problem, args.checkpoint, args.trust) for source in trained),
        ]
        evaluation = evaluate(problem, competitors, config, seed, partial(say, console), kept_searches(args))
        out = args.out or run_dir
        if len(setup.problems) > 1:
            out = out / name
        out.mkdir(parents=True, exist_ok=True)
        inner_steps = setup.estimator.inner_steps
        configs = {"run": to_dict(experiment)}
        yield evaluation, write_report(evaluation, out, records=records, inner_steps=inner_steps, configs=configs)


def generalizations(args: argparse.Namespace, config: TaskConfig | None, console: Console) -> Iterator[list[Path]]:
    """One table; of a run over several tasks, one of each."""
    given, trained = overrides(args)
    if config is not None:
        tasks, evaluation, seed = (config,), EvaluationConfig(**given), args.seed or 0
        sources, base = {name: name for name in trained}, place_of(args.task)
    else:
        (run_dir,) = args.run_dir
        experiment = load_run(run_dir, trust=args.trust)
        tasks = experiment.task.tasks if isinstance(experiment.task, MixtureConfig) else (experiment.task,)
        evaluation, seed = (
            dataclasses.replace(experiment.evaluation, **given),
            args.seed if args.seed is not None else experiment.seed,
        )
        sources, base = {"meta-trained": str(run_dir), **{name: name for name in trained}}, run_dir

    def setup(problem: Problem) -> list[Competitor]:
        return [
            dataclasses.replace(trained_optimizer(source, problem, args.checkpoint, args.trust), name=name)
            for name, source in sources.items()
        ]

    for task in tasks:
        near = args.data or local_alternatives(dataset_of(task))
        chosen = conditions(task, args.generalize or KINDS, near)
        with Stages(stages(chosen, len(sources), evaluation), console=console) as view:
            result = generalize(task, setup, evaluation, seed, chosen, progress=view.stage, cache=kept_searches(args))
        out = (args.out or base) / (result.task if len(tasks) > 1 else "")
        out.mkdir(parents=True, exist_ok=True)
        console.print(rich_lines(generalization_table(result), f"{result.task}: generalization"))
        yield write_generalization(result, out)


def main(argv: Sequence[str] | None = None) -> None:
    argv, debug = take_debug(argv)
    with reporting_errors("evaluate.py", debug=debug):
        args, config = parse(argv)
        prepare()
        console = Console()
        if (config is None and len(args.run_dir) > 1) or args.generalize is not None:
            for paths in generalizations(args, config, console) if args.generalize is not None else [pooled(args, argv, console)]:
                for path in paths:
                    say(console, str(path))
            return
        for found in of_run(args, console) if config is None else of_task(args, config, console):
            show(console, *found)


if __name__ == "__main__":
    main()
