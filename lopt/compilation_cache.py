"""Compiled programs kept on disk, so that a program that has been compiled once on this machine is read rather than compiled.

They are the same bits: a run from the cache equals one that is compiled afresh. The directory may be shared by several processes and
may be deleted at any time.
"""

import contextlib
import hashlib
import os
import platform
import tempfile
import time
import warnings
from pathlib import Path

import jax

SETTING = "LOPT_COMPILATION_CACHE"  # `off`, or a directory
_SHORTEST = 0.1  # seconds of compilation that are worth a file
_KEPT = 30 * 86_400  # seconds after which a program is compiled again, so that those of old code do not pile up


def compilation_cache_dir() -> Path | None:
    """Where compiled programs are kept.

    Returns:
      `$LOPT_COMPILATION_CACHE`, or None if that is `off`; without it `compiled` in the directory of preprocessed data:
      $LOPT_CACHE_DIR, else $XDG_CACHE_HOME/lopt, else ~/.cache/lopt. In it a directory for each kind of processor, as machine code
      for one may not run on another that shares the home directory.
    """
    own = os.environ.get(SETTING, "")
    if own.lower() == "off":
        return None
    if own:
        root = Path(own).expanduser()
    elif data := os.environ.get("LOPT_CACHE_DIR"):
        root = Path(data).expanduser() / "compiled"
    else:
        shared = os.environ.get("XDG_CACHE_HOME", "")
        root = (Path(shared) if os.path.isabs(shared) else Path("~/.cache").expanduser()) / "lopt" / "compiled"
    return root / _processor()


def use_compilation_cache() -> Path | None:
    """Keep what this process compiles, and read what others have; call before JAX compiles anything.

    Where JAX has been told of a directory (`JAX_COMPILATION_CACHE_DIR`), or not to keep anything (`JAX_ENABLE_COMPILATION_CACHE`),
    that holds. A directory that cannot be written is warned of, and programs are compiled as without a cache.

    Returns:
      The directory; None where this function has set none.
    """
    directory, config = compilation_cache_dir(), jax.config
    told = config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]  defined at run time
    if directory is None or told or not config.jax_enable_compilation_cache:  # pyright: ignore[reportAttributeAccessIssue]
        return None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        warnings.warn(
            f"compiled programs are not kept, as {directory} cannot be written ({error.strerror}); set {SETTING} to another place, "
            "or to off",
            stacklevel=2,
        )
        return None
    for entry in directory.iterdir():
        with contextlib.suppress(OSError):  # another process was faster, or it is somebody else's
            if time.time() - entry.stat().st_mtime > _KEPT:
                entry.unlink()
    jax.config.update("jax_compilation_cache_dir", str(directory))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _SHORTEST)
    # A process that is killed, or still at it, leaves an entry unfinished: it is compiled as if it were not there.
    warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry", UserWarning)
    return directory


def _processor() -> str:
    """A name for what machine code may depend on: the same on machines of the same kind."""
    lines = []
    with contextlib.suppress(OSError):
        wanted = ("model name", "flags", "Features")  # of the first core; the last is ARM's word for flags
        lines = [line for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines() if line.startswith(wanted)]
    said = "\n".join(lines) or f"{platform.processor()} {platform.node()}"
    return f"{platform.system()}-{platform.machine()}-{hashlib.sha256(said.encode()).hexdigest()[:8]}".lower()
