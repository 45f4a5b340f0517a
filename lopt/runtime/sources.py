"""Which code a process runs: digests of the files of lopt and of whatever else a config's classes are from."""

import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lopt.config.tree import imported_functions, parts

_LOPT = Path(__file__).resolve().parents[1]
_CODE = (".py", ".cc", ".h")


def sources(config: Any) -> dict[str, str]:
    """The digest of each file of code that a run of this config may use: lopt's, and of the packages that its classes are from.

    Args:
      config: a frozen dataclass, with nested ones.

    Returns:
      `PACKAGE/FILE` -> the first 16 hexadecimal digits of the file's sha256.
    """
    found = {}
    for root in sorted({_LOPT, *_roots(config)}):
        files = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.suffix in _CODE)
        found |= {path.relative_to(root.parent).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in files}
    return found


def code_digest(config: Any) -> str:
    """One digest of all of `sources`."""
    return hashlib.sha256(repr(sorted(sources(config).items())).encode()).hexdigest()[:16]


def _roots(config: Any) -> Iterator[Path]:
    """Directories of packages, or files of modules, that the config's classes and functions are from."""
    modules = {type(part).__module__ for part in parts(config)}
    modules |= {place.partition(":")[0] for part in parts(config) for place in imported_functions(part)}
    for name in modules:
        top = name.partition(".")[0]
        for module in (top, name):  # of a package that is a mere folder, the module alone
            file = getattr(sys.modules.get(module), "__file__", None) or _file_of(module)
            if file:
                path = Path(file).resolve()
                yield path.parent if path.name == "__init__.py" else path
                break


def _file_of(module: str) -> str | None:
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # whoever imports it will say so
        return None
    return found.origin if found is not None and found.has_location else None
