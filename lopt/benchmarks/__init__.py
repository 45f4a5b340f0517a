"""What things cost, measured: each benchmark returns one flat record, ready to be a JSON line."""

from lopt.benchmarks.compiling import compile_cost
from lopt.benchmarks.machine import environment, peak_megabytes

__all__ = ["compile_cost", "environment", "peak_megabytes"]
