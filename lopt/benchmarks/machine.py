"""Memory: of this process, and of a compiled program."""

import resource
import sys
from pathlib import Path
from typing import Any


def peak_megabytes() -> float:
    """The largest resident memory of this process so far, in MB of 10^6 bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def resident_megabytes() -> float | None:
    """The resident memory of this process now, in MB of 10^6 bytes; None where the system does not tell."""
    status = Path("/proc/self/statm")
    if not status.exists():
        return None
    return int(status.read_text().split()[1]) * resource.getpagesize() / 1e6


def planned_memory(compiled: Any) -> tuple[int, int]:
    """What XLA plans for one call of a compiled program on a device, in bytes: temporary buffers alone, and everything with them.

    Args:
      compiled: a `jax.stages.Compiled`.

    Raises:
      RuntimeError: if this backend does not tell.
    """
    planned = compiled.memory_analysis()
    if planned is None:
        raise RuntimeError("this backend of JAX does not say how much memory a program takes")
    kept = planned.argument_size_in_bytes + planned.output_size_in_bytes - planned.alias_size_in_bytes
    return planned.temp_size_in_bytes, kept + planned.temp_size_in_bytes
