"""The memory of this process."""

import resource
import sys
from pathlib import Path


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
