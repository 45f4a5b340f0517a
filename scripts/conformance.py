"""Run every conformance vector of a directory through the UNF layer.

Prints the largest absolute error of each and exits with status 1 if one is above 1e-5.

    python scripts/conformance.py DIR
"""

import argparse
import sys
from pathlib import Path

from lopt.layers.conformance import run_directory

TOLERANCE = 1e-5


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, metavar="DIR", help="folder with NAME.json and NAME.npz pairs")
    directory = parser.parse_args(argv).directory
    failed = False
    try:
        for name, error in run_directory(directory):
            passed = error <= TOLERANCE  # False for NaN too
            print(f"{name:<16} {error:.2e} {'ok' if passed else 'FAILED'}")
            failed |= not passed
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
