"""Optimizers that were shipped once: folders of theirs are still on people's disks."""

import pathlib

FILES = pathlib.Path(__file__).parent / "files"


def older(name: str) -> pathlib.Path:
    """The folder of fashion-mlp-unf, fashion-mlp-deep-sets, small-mixture-unf or small-mixture-deep-sets."""
    return FILES / name
