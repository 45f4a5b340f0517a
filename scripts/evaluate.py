"""Race a meta-trained optimizer against tuned baselines and against itself before meta-training."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from rich.console import Console

from lopt import checkpoint, metrics
from lopt.baselines import TuningError
from lopt.config import ConfigError, load_run
from lopt.estimators.base import PARTICLES
from lopt.evaluate import Competitor, EvaluationConfig, evaluate
from lopt.report import terminal_table, write_report
from lopt.trainer import initial_theta, use_all_cores
from tasks.datasets import DatasetError

DESCRIPTION = """\
Race the optimizer that a run has meta-trained, on initialisations it has not seen, against itself before meta-training and
against baselines whose learning rates are tuned first. All start from the same weights and see the same batches.

Writes into RUN, replacing an earlier evaluation's:
  summary.md          table: final training loss, test metrics, steps to the first baseline's final loss; how each is defined
  curves.png          training loss over inner steps, mean and standard error over seeds
  curves.npz          the curves and all other figures as arrays
  meta_training.png   meta-loss, learned scalars and meta-gradient over outer steps
"""
EPILOG = "example: python scripts/evaluate.py --run-dir runs/digits --steps 300 --seeds 10"


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="evaluate.py", description=DESCRIPTION, epilog=EPILOG, formatter_class=formatter)
    parser.add_argument(
        "--run-dir",
        type=Path,
        required=True,
        metavar="RUN",
        help="directory that scripts/meta_train.py wrote; its newest checkpoint",
    )
    parser.add_argument(
        "--steps", type=positive, metavar="T", help="inner steps of each training (default: the run's evaluation.steps)"
    )
    parser.add_argument(
        "--seeds", type=positive, metavar="K", help="initialisations raced from (default: the run's evaluation.seeds)"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    use_all_cores()
    console = Console()
    given = {name: value for name, value in (("steps", args.steps), ("seeds", args.seeds)) if value is not None}
    try:
        experiment = load_run(args.run_dir)
        config: EvaluationConfig = dataclasses.replace(experiment.evaluation, **given)
        theta, done = checkpoint.load_theta(args.run_dir), checkpoint.steps(args.run_dir)[-1]
        # A run that was killed may have logged outer steps after its newest checkpoint, which this theta has not seen.
        records = [record for record in metrics.read(args.run_dir) if record["outer_step"] <= done]
        task = experiment.task.make()
        optimizer = experiment.optimizer.make(task.spec, task.spec.sizes(task.param_shapes()))
        estimator = experiment.estimator.make(task, optimizer, jax.sharding.Mesh(jax.devices()[:1], (PARTICLES,)))
        competitors = [
            Competitor("meta-trained", optimizer.opt_fn, theta),
            Competitor("before meta-training", optimizer.opt_fn, initial_theta(experiment.seed, optimizer)),
        ]
        evaluation = evaluate(task, competitors, config, experiment.seed, progress=console.print)
        paths = write_report(evaluation, args.run_dir, records=records, inner_steps=estimator.inner_steps)
    except (ConfigError, DatasetError, TuningError, checkpoint.CheckpointError, metrics.MetricsError, OSError) as error:
        sys.exit(f"evaluate.py: {error}")
    console.print(terminal_table(evaluation))
    for path in paths:
        console.print(str(path), soft_wrap=True)


if __name__ == "__main__":
    main()
