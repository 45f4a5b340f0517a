"""Predict how well networks do from their weights alone."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from lopt.runtime.program import at_least, reporting_errors, take_debug
from lopt.runtime.progress import Stages
from lopt.weight_space.predict import Method, PredictionConfig, train_predictor
from lopt.weight_space.read import Zoo, read_zoo
from lopt.weight_space.report import (
    differences,
    is_papers_zoo,
    kept_predictions,
    prediction_table,
    read_predictions,
    write_predictions,
    write_report,
)
from lopt.weight_space.store import read_spec

DESCRIPTION = """\
Train predictors of a label of a zoo's models, such as their success rate on unseen data, from the models' weights. Eight tenths of the
zoo are trained on, one tells which epoch is best, one is looked at once, at the end. With --cross-validate each seed has another test
part, so that --seeds 10 test every model once: 200 models do not tell two good predictors apart, 2,000 do.

  unf               UNF layers: every pair of tensors has coefficients of its own
  shared_unf        UNF layers whose coefficients depend on the relation of two tensors alone
  pooled_deep_sets  a DeepSets layer with its mean over all weights
  deep_sets         every weight alone
  statnn            a perceptron on mean, variance and quartiles of each tensor

Writes into OUT: METHOD.json (scores and predictions of every seed), table.md beside the paper's figures, scatter.png; methods that were
trained before are shown too. The same command goes on where it was interrupted: seeds that are there are not trained again.

A zoo is what make_rnn_zoo.py makes, or any folder of .safetensors or .npz files with labels.csv (a column `file`, one for the label;
`index` where a file holds several models) and spec.json, the symmetry of the models:
  {"axes": {"dense/kernel": "inputs! hidden", "dense/bias": "hidden"}}        (python scripts/inspect_spec.py --help finds it out)

examples:
  python scripts/predict_generalization.py --zoo zoo --method unf statnn deep_sets --seeds 5
  python scripts/predict_generalization.py --zoo zoo --method shared_unf statnn deep_sets --seeds 10 --cross-validate"""


def number_or_none(text: str) -> float | None:
    return None if text.lower() == "none" else float(text)


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
    parser.add_argument("--seeds", type=at_least(1), default=5, metavar="K", help="trainings of each predictor (default: 5)")
    default = PredictionConfig()
    parser.add_argument(
        "--epochs", type=at_least(1), default=default.epochs, metavar="N", help=f"at most (default: {default.epochs})"
    )
    parser.add_argument(
        "--patience",
        type=at_least(1),
        default=default.patience,
        metavar="N",
        help=f"epochs without a smaller validation loss that end a training (default: {default.patience})",
    )
    parser.add_argument(
        "--channels",
        nargs="+",
        type=at_least(1),
        metavar="C",
        help=f"of each equivariant layer (default: {' '.join(map(str, default.channels))})",
    )
    parser.add_argument(
        "--terms",
        type=number_or_none,
        default=default.terms,
        metavar="X",
        help="layers are a pointwise map shared by all tensors plus X times their own terms; none: their own alone, the paper "
        f"(default: {default.terms})",
    )
    parser.add_argument(
        "--train-models", type=at_least(1), metavar="N", help="train on so many models of the training part (default: all)"
    )
    parser.add_argument("--cross-validate", action="store_true", help="a test part of its own for each seed")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: predictions/ of the zoo)")
    return parser.parse_args(argv)


def train_seeds(zoo: Zoo, config: PredictionConfig, out: Path, args: argparse.Namespace, view: Stages) -> None:
    """Train the seeds of a method that are not yet there; what there is is written after each."""
    of = {"label": args.label, "zoo": args.zoo.resolve().name}
    found = {one.seed: one for one in kept_predictions(out, config, zoo.labels, seeds=range(args.seeds), **of)}
    for seed in range(args.seeds):
        name = f"{config.method}, seed {seed}"
        if seed in found:
            view.stage(f"{name} is there", config.epochs)
            continue
        view.stage(f"{name}, compiling", 0)
        found[seed] = train_predictor(
            zoo, config, seed, lambda epoch, loss, name=name: view.stage(f"{name}, epoch {epoch}, loss {loss:.4f}", 1)
        )
        write_predictions(out, config, [found[one] for one in sorted(found)], models=len(zoo.labels), **of)
        done = found[seed]
        view.stage(f"{name}, best at epoch {done.epoch}", config.epochs - done.epochs)


def main(argv: Sequence[str] | None = None) -> None:
    argv, debug = take_debug(argv)
    args = parse(argv)

    from rich.console import Console

    from lopt.reporting.tables import rich_lines
    from lopt.runtime.compilation_cache import use_compilation_cache

    if args.channels is not None and set(args.method) == {"statnn"}:
        sys.exit("predict_generalization.py: --channels does nothing with statnn, which has no equivariant layers: leave it out")
    use_compilation_cache()
    out, console = args.out or args.zoo / "predictions", Console()
    with reporting_errors("predict_generalization.py", debug=debug):
        zoo = read_zoo(args.zoo, args.label, None if args.spec is None else read_spec(args.spec))
        with Stages(len(args.method) * args.seeds * args.epochs, console=console) as view:
            for method in args.method:
                config = PredictionConfig(
                    method=method,
                    channels=PredictionConfig().channels if args.channels is None else tuple(args.channels),
                    terms=args.terms,
                    epochs=args.epochs,
                    patience=args.patience,
                    train_models=args.train_models,
                    cross_validate=args.cross_validate,
                )
                train_seeds(zoo, config, out, args, view)
        paper = is_papers_zoo(args.zoo, args.label)
        paths = write_report(out, paper=paper)
    predictions, _ = read_predictions(out)
    console.print(
        rich_lines(
            prediction_table(predictions, paper=paper), f"{args.label} of {len(zoo.labels):,} models: those that are tested"
        )
    )
    if further := differences(predictions):
        console.print(rich_lines(further, "errors over the models that are tested"))
    for path in paths:
        console.print(str(path), soft_wrap=True)


if __name__ == "__main__":
    main()
