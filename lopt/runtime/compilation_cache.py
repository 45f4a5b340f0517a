"""Compiled programs kept on disk, so that a program that has been compiled once on this machine is read rather than compiled.

They are the same bits: a run from the cache equals one that is compiled afresh. The directory may be shared by several processes and
may be deleted at any time.
"""

import contextlib
import os
import tempfile
import time
import warnings
from pathlib import Path

import jax

from lopt.config.caches import COMPILATION_CACHE, UntrustedCacheError, compilation_cache_dir, private_directory

_SHORTEST = 0.1  # seconds of compilation that are worth a file
_KEPT = 30 * 86_400  # seconds after which a program is compiled again, so that those of old code do not pile up


def use_compilation_cache() -> Path | None:
    """Keep what this process compiles, and read what others have; call before JAX compiles anything.

    Where JAX has been told of a directory (`JAX_COMPILATION_CACHE_DIR`), or not to keep anything (`JAX_ENABLE_COMPILATION_CACHE`),
    that holds. A directory that cannot be written, or that others can write to, is warned of, and programs are compiled as without a
    cache.

    Returns:
      The directory; None where this function has set none.
    """
    directory, config = compilation_cache_dir(), jax.config
    told = config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]  defined at run time
    if directory is None or told or not config.jax_enable_compilation_cache:  # pyright: ignore[reportAttributeAccessIssue]
        return None
    try:
        with tempfile.TemporaryFile(dir=private_directory(directory)):
            pass
    except UntrustedCacheError as error:
        warnings.warn(f"compiled programs are not kept: {error}", stacklevel=2)
        return None
    except OSError as error:
        warnings.warn(
            f"compiled programs are not kept, as {directory} cannot be written ({error.strerror}); set {COMPILATION_CACHE} to "
            "another place, or to off",
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
