"""The trained optimizers that are there: all that are shipped, or one with its card."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lopt.pretrained.card import read_card
from lopt.pretrained.load import available, call_of, open_trained
from lopt.runtime.program import reporting_errors, take_debug

DESCRIPTION = """\
List the shipped optimizers, or show one: what it is, what it is good for, and how a program loads it. SOURCE is the name of a shipped
one, a run directory, a folder with a card, or hf://owner/name."""


def main(argv: Sequence[str] | None = None, *, prog: str = "python -m lopt load") -> None:
    """The command; `prog` is what it is called by."""
    argv, debug = take_debug(argv)
    parser = argparse.ArgumentParser(prog=prog, description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", metavar="SOURCE", help="which one (default: list those that are shipped)")
    source = parser.parse_args(argv).source
    with reporting_errors(prog, debug=debug):
        if source is None:
            print(available())
            return
        trained = open_trained(source)  # reads and checks theta
        shipped = available()
        print(shipped[source] if source in shipped else read_card(source) if (Path(source) / "card.json").is_file() else source)
        print(f"{trained.config}")
        print(f"\n    tx = {call_of(trained)}      # in any optax loop")
