"""What code and what machine a result is of: of a run in `environment.json` beside its config, one entry for each start.

A run that is resumed with another version of jax, on other devices or from changed code shows it there. The name of the machine
is left out.
"""

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

from lopt.config import ConfigError, parse_json, write_atomically
from lopt.config.caches import processor
from lopt.layers.kernels import ffi as native

ENVIRONMENT_FILE = "environment.json"
_PACKAGES = ("lopt", "jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "numpy", "optax", "flax")
_CODE = Path(__file__).parents[1] / "__init__.py"
_GIT_SECONDS = 10.0


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(directory: Path, *arguments: str) -> str | None:
    """What a git command prints; None where there is no git, no repository, or none that it trusts."""
    command = ["git", "-C", str(directory), *arguments]
    quiet = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # looking must not keep others from committing
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_GIT_SECONDS, env=quiet
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def code_version(file: str | Path = _CODE) -> dict[str, Any] | None:
    """The commit of the repository that tracks a file of code.

    Args:
      file: of the code; this package by default.

    Returns:
      `commit`, and `dirty`: whether a tracked Python file of the repository differs from it (figures and prose may); None where the
      file is not tracked, as in an environment that lies within somebody's repository.
    """
    file = Path(file).resolve()
    if _git(file.parent, "ls-files", "--error-unmatch", "--", file.name) is None:
        return None
    commit = _git(file.parent, "rev-parse", "--verify", "HEAD")
    changes = _git(file.parent, "status", "--porcelain", "--untracked-files=no", "--", ":(top)*.py")
    return None if commit is None or changes is None else {"commit": commit, "dirty": bool(changes)}


def packages() -> dict[str, str]:
    """The versions of the packages that results may depend on, by name, of those that are installed."""
    versions = {package: _version(package) for package in _PACKAGES}
    return {package: version for package, version in versions.items() if version is not None}


def environment() -> dict[str, Any]:
    """What the results of this process may depend on besides config and seed.

    Returns:
      `git` (see `code_version`), `packages` (name -> version, of those installed), `python`, `system`, `processor` (a name for its kind),
      `backend`, `device` (kind), `devices` and `processes` (numbers), `native` (whether kernels in C++ are used,
      `lopt.layers.kernels.build`).

    Example:
      >>> environment()["packages"].keys() >= {"jax", "jaxlib", "numpy", "optax"}
      True
    """
    return {
        "git": code_version(),
        "packages": packages(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "native": native.kernel() is not None,
    }


def stamp() -> dict[str, Any]:
    """`environment` on one line, for figures that are kept: what they depend on most, and when they were measured.

    Returns:
      `commit` (12 digits, followed by `-dirty` if tracked code differs from it; None where the code is not tracked), `device`,
      `devices`, `native`, `jax`, `python`, `date` (UTC).

    Example:
      >>> list(stamp())
      ['commit', 'device', 'devices', 'native', 'jax', 'python', 'date']
    """
    found = environment()
    git = found["git"]
    return {
        "commit": None if git is None else git["commit"][:12] + "-dirty" * git["dirty"],
        "device": found["device"],
        "devices": found["devices"],
        "native": found["native"],
        "jax": found["packages"]["jax"],
        "python": found["python"],
        "date": datetime.now(UTC).date().isoformat(),
    }


_BITS = ("packages", "python", "system", "processor", "backend", "device", "devices", "processes", "native", "code")


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In what two starts of a run differ that may change the last bits of theta, by name; what one of them does not tell is left out.

    Example:
      >>> changes({"devices": 2, "packages": {"jax": "1"}, "git": None}, {"devices": 4, "packages": {"jax": "2"}})
      ['jax 1 -> 2', 'devices 2 -> 4']
    """
    said = []
    for name in (name for name in _BITS if name in before and name in now):
        old, new = before[name], now[name]
        if name == "packages":
            both = sorted(old.keys() | new.keys())
            said += [
                f"{package} {old.get(package)} -> {new.get(package)}" for package in both if old.get(package) != new.get(package)
            ]
        elif old != new:
            said.append(f"{name} {old} -> {new}")
    return said


def record_start(run_dir: str | Path, outer_step: int, **more: Any) -> dict[str, Any]:
    """Append an entry for this start of a run to its environment.json, atomically.

    Args:
      run_dir: the run directory, which exists.
      outer_step: the outer step from which the run goes on; 0 for a new run.
      **more: to be known of the start, as JSON values.

    Returns:
      The entry: `time` (UTC, ISO 8601), `outer_step`, what `environment` gives, and `more`.

    Raises:
      ConfigError: if the file that is there does not hold a list of entries.
      OSError: if the file cannot be written.
    """
    path = Path(run_dir) / ENVIRONMENT_FILE
    starts = read_starts(run_dir) if path.exists() else []
    entry = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "outer_step": outer_step, **environment(), **more}
    write_atomically(path, (json.dumps([*starts, entry], indent=2) + "\n").encode())
    return entry


def read_starts(run_dir: str | Path) -> list[dict[str, Any]]:
    """The entries of a run's environment.json, in the order of its starts.

    Raises:
      FileNotFoundError: if there is no such file.
      ConfigError: if it does not hold a list of entries.
    """
    path = Path(run_dir) / ENVIRONMENT_FILE
    try:
        starts = parse_json(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}; repair it or move it away") from error
    if not isinstance(starts, list) or not all(isinstance(entry, dict) for entry in starts):
        raise ConfigError(f"{path} is not a list of objects, one for each start; repair it or move it away")
    return starts
