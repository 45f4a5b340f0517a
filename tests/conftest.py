"""Fixtures shared by the tests. The settings of JAX are in the root's conftest.py: the examples in docstrings need them too."""

import os
import pathlib
import platform

import pytest

from lopt.layers.kernels import build


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


@pytest.fixture(params=["x86-64", "x86-64-v3", "x86-64-v4"])
def architecture(request, monkeypatch) -> str:
    """Another processor that kernels are made for; skipped where this one cannot run what is made for it."""
    if platform.machine() != "x86_64":
        pytest.skip("another processor")
    known = pathlib.Path("/proc/cpuinfo").read_text().split()
    needed = {"x86-64-v3": {"avx2", "fma"}, "x86-64-v4": {"avx512f", "avx512vl"}}
    if not needed.get(request.param, set()) <= set(known):
        pytest.skip("this processor cannot run it")
    monkeypatch.setenv(build.ARCHITECTURE, request.param)
    return request.param
