"""Somebody's own code by its place: `module:NAME`, or `path/to/file.py:NAME`."""

import hashlib
import importlib
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from lopt.config.tree import ConfigError

_BESIDE = Path(__file__).resolve().parents[2]  # a clone, whose tasks, configs and examples are importable
FILE_MODULE = "lopt_file_"  # prefix of the names under which files are imported by their path


def is_place(text: str) -> bool:
    """Whether a text reads `module:NAME` or `FILE.py:NAME`, which no registered name does."""
    before, colon, name = text.rpartition(":")
    return bool(colon and before) and all(part.isidentifier() for part in name.split("."))


def import_place(place: str, directory: str | Path | None = None) -> Any:
    """The object at a place.

    Args:
      place: `module:NAME` of a module that Python finds, or that lies in `directory`; or `FILE.py:NAME`, a path relative to it.
      directory: the working directory, unless given. It is on Python's path from then on, so that what is imported later, inside a
        function, is found too.

    Raises:
      ConfigError: if there is no such module, file or name in it; says what there is. What is wrong inside a module or a file is raised
        as it is, with its file and line.
    """
    where, _, name = place.rpartition(":")
    if not is_place(place):
        raise ConfigError(f"'{place}' does not read module:NAME or path/to/file.py:NAME")
    root = Path(directory or os.getcwd()).resolve()
    home = (root / where).parent if where.endswith(".py") else root
    if str(home) not in sys.path:
        sys.path.append(str(home))  # last, so that it hides nothing
    found: Any = import_file(root / where) if where.endswith(".py") else _import_module(where, root)
    for part in name.split("."):
        if not hasattr(found, part):
            own = [
                key
                for key, value in vars(found).items()
                if callable(value) and getattr(value, "__module__", "") == found.__name__
            ]
            listing = ", ".join(sorted(key for key in own if not key.startswith("_"))) or "none"
            raise ConfigError(f"{where} ({getattr(found, '__file__', where)}) has no '{name}'; it defines: {listing}")
        found = getattr(found, part)
    return found


def import_file(path: str | Path, *, again: bool = False) -> ModuleType:
    """Import a Python file under a name of its own; it may import its neighbours, as when run as a program.

    Args:
      path: of the file.
      again: run it even if it was imported before.

    Raises:
      ConfigError: if there is no such file, or it is not a Python file. What is wrong inside is raised as it is.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no file {path}")
    location = path.resolve()
    name = f"{FILE_MODULE}{path.stem}_{hashlib.sha256(str(location).encode()).hexdigest()[:8]}"
    if name in sys.modules and not again:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, location)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up the annotations of their fields there
    try:
        with _first_on_path(location.parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_module(name: str, directory: Path) -> ModuleType:
    try:
        with _first_on_path(directory):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there; one that it imports is not
        raise ConfigError(
            f"No module named '{error.name}', neither installed nor in {directory}: go to the directory that has it, or put that on "
            "PYTHONPATH"
        ) from error


def home_of(module: str) -> str | None:
    """The directory from which a module of somebody's own was imported; None for an installed one, and for what lies beside lopt."""
    top = sys.modules.get(module.partition(".")[0])
    file = getattr(top, "__file__", None)
    if top is None or file is None:
        return None
    path = Path(file).resolve()
    directory = path.parents[1] if hasattr(top, "__path__") else path.parent
    installed = (Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    return None if directory in (*installed, _BESIDE) or _BESIDE in directory.parents else str(directory)


@contextmanager
def _first_on_path(directory: Path) -> Iterator[None]:
    """Inside, a directory comes first on Python's path, so that neighbours are found."""
    entry = str(directory)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)
