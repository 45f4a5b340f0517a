"""Options of a benchmark on the command line."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Sized:
    """The default of an option: one for the benchmark itself, one for --quick."""

    def __init__(self, default: Any, quick: Any):
        self.default, self.quick = default, quick

    def __str__(self) -> str:
        full, quick = (" ".join(map(str, x)) if isinstance(x, list) else str(x) for x in (self.default, self.quick))
        return f"{full}; quick: {quick}"


def fill_in(args: argparse.Namespace) -> argparse.Namespace:
    """The arguments with the one or the other default of the options that were not given, by `args.quick`."""
    for name, value in vars(args).items():
        if isinstance(value, Sized):
            setattr(args, name, value.quick if args.quick else value.default)
    return args


def at_least(minimum: int) -> Callable[[str], int]:
    """The type of a whole number that is not below a minimum."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}, got {text}")
        return int(text)

    return parse


def png_file(text: str) -> Path:
    """The type of the path of a picture."""
    if not text.endswith(".png"):
        raise argparse.ArgumentTypeError(f"must be a .png file, got {text}")
    return Path(text)
