"""Where lopt keeps what can be made again: preprocessed data, compiled programs and kernels, tuned rivals.

What lies there is run, or believed, so it must be the user's own: directories are made for the user alone, and one that belongs to
somebody else, or that others may write to, is not used.
"""

import contextlib
import hashlib
import os
import platform
import stat
from pathlib import Path

from lopt.config.errors import LoptError

CACHE_DIR = "LOPT_CACHE_DIR"
COMPILATION_CACHE = "LOPT_COMPILATION_CACHE"  # `off`, or a directory


def cache_root() -> Path:
    """$LOPT_CACHE_DIR, else $XDG_CACHE_HOME/lopt, else ~/.cache/lopt."""
    if own := os.environ.get(CACHE_DIR):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(shared) if os.path.isabs(shared) else Path("~/.cache").expanduser()) / "lopt"


class UntrustedCacheError(LoptError, RuntimeError):
    """A directory of kept things that somebody else could have put something into; the message says how to mend it."""


def private_directory(path: Path) -> Path:
    """A directory whose content only this user can have put there, made if need be.

    Args:
      path: the directory; those above it that are missing are made for the user alone too.

    Raises:
      UntrustedCacheError: if it belongs to another user, or others may write to it.
      OSError: if it cannot be made.
    """
    for missing in reversed([place for place in (path, *path.parents) if not place.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)
    if not is_private(path):
        said = path.stat()
        owner = "this user" if said.st_uid == os.geteuid() else f"user {said.st_uid}"
        raise UntrustedCacheError(
            f"{path} belongs to {owner} and has the mode {stat.S_IMODE(said.st_mode):o}: others can put things there, so nothing in it is "
            f"used. Empty it and take their right to write away (chmod go-w), or set {CACHE_DIR} to a directory of your own"
        )
    return path


def is_private(path: Path) -> bool:
    """Whether a file or directory belongs to this user, and nobody else may write to it."""
    said = path.stat()
    return said.st_uid == os.geteuid() and not said.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def compilation_cache_dir() -> Path | None:
    """Where compiled programs are kept.

    Returns:
      `$LOPT_COMPILATION_CACHE`, or None if that is `off`; without it `compiled` in `cache_root()`. In it a
      directory for each kind of processor, as machine code for one may not run on another that shares the home directory.
    """
    own = os.environ.get(COMPILATION_CACHE, "")
    if own.lower() == "off":
        return None
    root = Path(own).expanduser() if own else cache_root() / "compiled"
    return root / processor()


def processor() -> str:
    """A name for what machine code may depend on: the same on machines of the same kind."""
    lines = []
    with contextlib.suppress(OSError):
        wanted = ("model name", "flags", "Features")  # of the first core; the last is ARM's word for flags
        lines = [line for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines() if line.startswith(wanted)]
    said = "\n".join(lines) or f"{platform.processor()} {platform.node()}"
    return f"{platform.system()}-{platform.machine()}-{hashlib.sha256(said.encode()).hexdigest()[:8]}".lower()
