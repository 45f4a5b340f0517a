"""The kernels' own tests once more, of kernels that watch every address and every operation that C++ leaves undefined."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lopt.layers.kernels.build import find_compiler

TESTS = (
    "tests/layers/test_step.py",
    "tests/layers/test_digest.py",
    "tests/optimizers/test_newton_schulz.py",
    "tests/optimizers/test_shampoo.py",
    "tests/optimizers/test_rule_kernels.py",
)
# Without what never calls the kernel.
CHOSEN = (
    "(every_rank or (couple_weights and role) or not_finite or threads or no_tensor or diagonal or bfloat16 or singular or eigenvalues "
    "or xla) and not (blocks or [xla] or is_said)"
)
ROOT = Path(__file__).parents[2]


def runtimes(compiler):
    """The libraries that must be there before Python is; None where the compiler has no AddressSanitizer as a library."""
    said = [
        subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=False).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")  # the first looks for what the second throws
    ]
    return " ".join(said) if all(Path(path).is_absolute() for path in said) else None


@pytest.mark.slow
@pytest.mark.compiles
@pytest.mark.long
def test_no_address_is_wrong_and_nothing_undefined(tmp_path):
    compiler = find_compiler()
    if compiler is None or runtimes(compiler) is None:
        pytest.skip("there is no C++ compiler with AddressSanitizer as a library")
    watched = tmp_path / "c++"
    watched.write_text(f'#!/bin/sh\nexec {compiler} "$@" -O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined\n')
    watched.chmod(0o755)
    kept = tmp_path / "kept"
    environment = os.environ | {
        "CXX": str(watched),
        "LD_PRELOAD": runtimes(compiler),
        # Leaks are Python's own. Where memory came from is not kept: XLA's compiler asks for it a million times.
        "ASAN_OPTIONS": "detect_leaks=0:malloc_context_size=0",
        "LOPT_COMPILATION_CACHE": str(kept),  # beside kernels that are not watched they would have the same name
    }
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-m", "not slow", "-k", CHOSEN, *TESTS]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    libraries = list(kept.rglob("lopt_*.so"))
    assert libraries, "the kernels were made for this"
    assert all(
        b"__asan_report_load" in library.read_bytes() and b"__ubsan_handle" in library.read_bytes() for library in libraries
    )
