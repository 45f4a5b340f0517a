"""Make the folder of a trained optimizer from a run: theta.safetensors and card.json, for lopt.load, to be sent or shipped."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lopt.runtime.program import DEBUG_HELP, reporting_errors, take_debug

DESCRIPTION = """\
Write OUT with theta.safetensors and card.json, whole or not at all, from the run directory RUN. The tasks of the run are made once
more, for their names and symmetries, so their data must be on this machine. Then, in any script: lopt.load("OUT")."""
EPILOG = f"""\
{DEBUG_HELP}

example:
  python scripts/evaluate.py --task mlp --optimizer adam sgdm runs/small_mixture --steps 300 --seeds 10 --out runs/evaluate/unf
  python scripts/export_optimizer.py --run-dir runs/small_mixture --name small-mixture-unf --out runs/small-mixture-unf
      --results runs/evaluate/unf/table.json --summary "a UNF, shared by role, for any architecture" """


def argument_parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="export_optimizer.py", description=DESCRIPTION, epilog=EPILOG, formatter_class=formatter, allow_abbrev=False
    )
    parser.add_argument("--run-dir", type=Path, required=True, metavar="RUN", help="directory that scripts/meta_train.py wrote")
    parser.add_argument("--name", required=True, help="of the optimizer: small letters, digits and hyphens")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--summary", default="", help="what it is, in one line")
    parser.add_argument("--good-for", default="", help="what it does well, by measurement")
    parser.add_argument("--not-for", default="", help="what it does not do well")
    text = "table.json of evaluations in which it raced, as the run, as OUT or as its name"
    parser.add_argument("--results", type=Path, nargs="+", default=[], metavar="FILE", help=text)
    parser.add_argument("--licence", default="Apache-2.0", help="of theta (default: Apache-2.0)")
    text = "which theta of the run: the best by its held-out evaluations, if it had any, or the newest (default: best)"
    parser.add_argument("--checkpoint", choices=("best", "newest"), default="best", help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace the optimizer that is in OUT")
    text = "import classes and functions that RUN's config names although they are not lopt's and RUN was not made here"
    parser.add_argument("--trust", action="store_true", help=text)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    argv, debug = take_debug(argv)
    args = argument_parser().parse_args(argv)
    # Imported here, so that --help and a wrong argument answer at once.
    from lopt.pretrained.export import export_run

    with reporting_errors("export_optimizer.py", debug=debug):
        card = export_run(
            args.run_dir,
            args.out,
            name=args.name,
            summary=args.summary,
            good_for=args.good_for,
            not_for=args.not_for,
            results=args.results,
            licence=args.licence,
            best=args.checkpoint == "best",
            overwrite=args.overwrite,
            trust=args.trust,
        )
    print(f"{args.out}: {card.name}, sha256 {card.sha256}")


if __name__ == "__main__":
    main()
