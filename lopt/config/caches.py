"""Where lopt keeps what can be made again: preprocessed data, compiled programs and kernels, tuned rivals."""

import contextlib
import hashlib
import os
import platform
from pathlib import Path

CACHE_DIR = "LOPT_CACHE_DIR"
COMPILATION_CACHE = "LOPT_COMPILATION_CACHE"  # `off`, or a directory


def cache_root() -> Path:
    """$LOPT_CACHE_DIR, else $XDG_CACHE_HOME/lopt, else ~/.cache/lopt."""
    if own := os.environ.get(CACHE_DIR):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(shared) if os.path.isabs(shared) else Path("~/.cache").expanduser()) / "lopt"


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
    return root / _processor()


def _processor() -> str:
    """A name for what machine code may depend on: the same on machines of the same kind."""
    lines = []
    with contextlib.suppress(OSError):
        wanted = ("model name", "flags", "Features")  # of the first core; the last is ARM's word for flags
        lines = [line for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines() if line.startswith(wanted)]
    said = "\n".join(lines) or f"{platform.processor()} {platform.node()}"
    return f"{platform.system()}-{platform.machine()}-{hashlib.sha256(said.encode()).hexdigest()[:8]}".lower()
