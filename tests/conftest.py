"""Fixtures shared by the tests. The settings of JAX are in the root's conftest.py: the examples in docstrings need them too."""

import os
import pathlib

import pytest


@pytest.fixture(scope="session")
def shared_dir() -> pathlib.Path:
    """The folder of test vectors, `../shared` beside the repository. On CI its absence is a failure, elsewhere a skip."""
    path = pathlib.Path(__file__).resolve().parents[2] / "shared"
    if not path.is_dir():
        reason = f"no folder {path}: it holds the test vectors"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path
