"""Predict how well networks do from their weights alone."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from lopt.model_zoo.predict import Method, PredictionConfig, train_predictor
from lopt.model_zoo.read import read_zoo
from lopt.model_zoo.report import read_predictions, table, write_predictions, write_report
from lopt.model_zoo.store import ZooError, read_spec
from lopt.stages import Stages

DESCRIPTION = """\
Train predictors of a label of a zoo's models, such as their success rate on unseen data, from the models' weights. Eight tenths of the
zoo are trained on, one tells which epoch is best, one is looked at once, at the end.

  unf               UNF layers: every pair of tensors has coefficients of its own
  shared_unf        UNF layers whose coefficients depend on the relation of two tensors alone
  pooled_deep_sets  a DeepSets layer with its mean over all weights
  deep_sets         every weight alone
  statnn            a perceptron on mean, variance and quartiles of each tensor

Writes into OUT: METHOD.json (scores and predictions of every seed), table.md beside the paper's figures, scatter.png; methods that were
trained before are shown too.

A zoo is what make_rnn_zoo.py makes, or any folder of .safetensors or .npz files with labels.csv (a column `file`, one for the label;
`index` where a file holds several models) and spec.json, the symmetry of the models:
  {"axes": {"dense/kernel": "inputs! hidden", "dense/bias": "hidden"}}        (python scripts/inspect_spec.py --help finds it out)

examples:
  python scripts/predict_generalization.py --zoo zoo --method unf statnn deep_sets --seeds 5"""


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="predict_generalization.py", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--zoo", type=Path, required=True, metavar="DIR", help="the models and their labels")
    parser.add_argument(
        "--method", nargs="+", choices=get_args(Method), default=["unf"], help="predictors to train (default: unf)"
    )
    parser.add_argument("--label", default="success", metavar="COLUMN", help="what is predicted, in [0, 1] (default: success)")
    parser.add_argument("--spec", type=Path, metavar="FILE", help="symmetry of the models (default: spec.json of the zoo)")
    parser.add_argument("--seeds", type=positive, default=5, metavar="K", help="trainings of each predictor (default: 5)")
    default = PredictionConfig()
    parser.add_argument(
        "--epochs", type=positive, default=default.epochs, metavar="N", help=f"at most (default: {default.epochs})"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: predictions/ of the zoo)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)

    from rich.console import Console

    from lopt.compilation_cache import use_compilation_cache
    from lopt.tables import rich_lines

    use_compilation_cache()
    out, console = args.out or args.zoo / "predictions", Console()
    try:
        zoo = read_zoo(args.zoo, args.label, None if args.spec is None else read_spec(args.spec))
        with Stages(len(args.method) * args.seeds, console=console) as view:
            for method in args.method:
                config, predictions = PredictionConfig(method=method, epochs=args.epochs), []
                for seed in range(args.seeds):
                    view.stage(f"{method}, seed {seed}", 1.0)
                    predictions.append(train_predictor(zoo, config, seed))
                write_predictions(out, config, predictions, label=args.label, models=len(zoo.labels), zoo=args.zoo.resolve().name)
        paths = write_report(out)
    except (ZooError, ValueError, OSError) as error:
        sys.exit(f"predict_generalization.py: {error}")
    console.print(rich_lines(table(read_predictions(out)[0]), f"{args.label} of {len(zoo.labels):,} models: the test part"))
    for path in paths:
        console.print(str(path), soft_wrap=True)


if __name__ == "__main__":
    main()
