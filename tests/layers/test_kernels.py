"""Kernels are made once, kept, and done without where they cannot be made."""

import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from lopt.config.caches import compilation_cache_dir
from lopt.layers.kernels import build as native_kernels
from lopt.layers.kernels import ffi as native
from lopt.layers.kernels.build import (
    NativeKernelError,
    find_compiler,
    load_kernels,
    make_library,
    open_library,
    use_native_kernels,
)
from lopt.runtime.environment import read_starts
from lopt.training import metrics

ROOT = Path(__file__).resolve().parents[2]

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="there is no C++ compiler")


@pytest.fixture(autouse=True)
def nothing_is_used(monkeypatch, tmp_path):
    monkeypatch.setenv("LOPT_COMPILATION_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(native_kernels.SETTING, raising=False)
    yield
    native.use(None)


def compiler(path, script):
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@needs_compiler
def test_a_kernel_is_made_once(tmp_path):
    library = make_library(str(find_compiler()), tmp_path / "cache" / "kernel.so")
    assert open_library(library)
    assert sorted(library.parent.iterdir()) == [library.with_suffix(".sha256"), library]
    assert make_library("no compiler", library) == library
    assert load_kernels() == load_kernels()


@needs_compiler
def test_without_a_place_to_keep_it_a_kernel_is_made_all_the_same():
    code = "from lopt.layers.kernels import build, ffi; build.use_native_kernels(); print(ffi.kernel() is not None)"
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LOPT_COMPILATION_CACHE": "off"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == "True\n"


@needs_compiler
def test_it_is_made_when_it_is_first_needed(monkeypatch):
    asked = []
    monkeypatch.setattr(native_kernels, "load_kernels", lambda: asked.append(1) or native.Kernel("name", False))
    use_native_kernels()
    assert not asked
    assert native.kernel()
    assert native.kernel()
    assert asked == [1]


def test_off_and_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv(native_kernels.SETTING, "off")
    use_native_kernels()
    assert native.kernel() is None
    monkeypatch.delenv(native_kernels.SETTING)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    use_native_kernels()
    assert native.kernel() is None
    with pytest.raises(NativeKernelError, match=r"none of c\+\+, g\+\+, clang\+\+ is on the path"):
        load_kernels()


def test_a_compiler_that_fails_is_warned_of_and_leaves_nothing(monkeypatch, tmp_path):
    script = 'case "$1" in --version) echo 1.0;; *) echo "cc: error: no such thing" >&2; exit 1;; esac'
    monkeypatch.setenv("CXX", compiler(tmp_path / "broken", script))
    with pytest.raises(NativeKernelError, match="cannot compile the kernels:\ncc: error: no such thing"):
        load_kernels()
    assert not list((tmp_path / "cache").glob("*/*"))
    use_native_kernels()
    with pytest.warns(UserWarning, match="going on without. LOPT_NATIVE=off does so without this warning"):
        assert native.kernel() is None
    assert native.kernel() is None  # and is not tried again


def test_a_damaged_library_is_named(tmp_path):
    (tmp_path / "kernel.so").write_bytes(b"not a library")
    with pytest.raises(NativeKernelError, match=r"kernel\.so cannot be loaded .* delete it"):
        open_library(tmp_path / "kernel.so")


@pytest.mark.slow
@needs_compiler
def test_a_kernel_that_is_not_what_was_written_is_made_again(tmp_path):
    """A power cut leaves it empty or short, which would be gone on without, or end the process; so would a checksum that is cut."""
    library = make_library(str(find_compiler()), tmp_path / "kernel.so")
    whole, said = library.read_bytes(), library.with_suffix(".sha256")
    for damage in (b"", whole[: len(whole) // 2], whole[:-1] + bytes([whole[-1] ^ 1])):
        library.unlink()  # not the file that this process has open
        library.write_bytes(damage)
        with pytest.raises(NativeKernelError, match="no compiler cannot be run"):  # it is not taken as it is
            make_library("no compiler", library)
    open_library(make_library(str(find_compiler()), library))
    assert len(library.read_bytes()) == len(whole)
    said.write_text("")
    with pytest.raises(NativeKernelError, match="no compiler cannot be run"):
        make_library("no compiler", library)


@pytest.mark.slow
@needs_compiler
def test_a_kernel_that_somebody_else_could_have_planted_is_not_loaded(tmp_path):
    directory = compilation_cache_dir()
    directory.mkdir(parents=True)
    directory.chmod(0o777)
    planted = directory / f"lopt_{native_kernels._identity(str(find_compiler()))}.so"
    planted.write_bytes(b"planted")
    planted.with_suffix(".sha256").write_text(hashlib.sha256(b"planted").hexdigest())
    code = "from lopt.layers.kernels import build, ffi; build.use_native_kernels(); print(ffi.kernel() is not None)"
    command = [sys.executable, "-W", "always", "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout == "True\n"  # its own, which is not kept
    assert "others can put things there" in found.stderr
    assert planted.read_bytes() == b"planted"


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing keeps root from writing")
def test_a_place_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(NativeKernelError, match="cannot be written"):
        make_library("c++", tmp_path / "cache" / "kernel.so")


def test_no_kernel_where_the_backend_is_another(monkeypatch):
    use_native_kernels()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert native.kernel() is None


@pytest.mark.slow
@needs_compiler
def test_a_run_with_the_kernel_is_the_run_without_up_to_rounding(tmp_path):
    found = {}
    for setting in ("", "off"):
        run_dir = tmp_path / f"run{setting}"
        script = [
            sys.executable,
            "scripts/meta_train.py",
            "--config",
            "configs/smoke.py",
            "--run-dir",
            str(run_dir),
            "--outer-steps",
            "4",
        ]
        subprocess.run(script, cwd=ROOT, env={**os.environ, native_kernels.SETTING: setting}, check=True, capture_output=True)
        assert [start["native"] for start in read_starts(run_dir)] == [setting == ""]
        assert all("left_to_xla" not in start for start in read_starts(run_dir))
        found[setting] = [record["meta_loss"] for record in metrics.read(run_dir)]
    assert len(found[""]) == 4
    np.testing.assert_allclose(found[""], found["off"], rtol=1e-3)
