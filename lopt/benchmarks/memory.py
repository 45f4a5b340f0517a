"""Whether meta-training grows in memory."""

import dataclasses
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lopt.benchmarks.machine import peak_megabytes, resident_megabytes
from lopt.training.trainer import MetaTrainConfig, meta_train


def memory_growth(experiment: MetaTrainConfig, steps: int) -> dict[str, Any]:
    """Resident memory of this process at a tenth of the outer steps and at their end, checkpoints and metrics being written.

    Args:
      experiment: what to train; its number of outer steps is replaced.
      steps: outer steps, at least 10.

    Returns:
      `outer_steps`, `early_mb` (after a tenth of the steps), `late_mb` (at the end), `peak_mb`, `seconds`; None where the system does
      not tell.
    """
    start, early, measured = time.perf_counter(), steps // 10, {}

    def observe(step: int, values: Mapping[str, Any]) -> None:
        del values
        if step in (early, steps):
            measured["early_mb" if step == early else "late_mb"] = resident_megabytes()

    with tempfile.TemporaryDirectory() as directory:
        run = dataclasses.replace(experiment, outer_steps=steps)
        meta_train(run, Path(directory) / "run", progress=False, observers=(observe,))
    rounded = {name: None if value is None else round(value, 1) for name, value in measured.items()}
    return {
        "outer_steps": steps,
        **rounded,
        "peak_mb": round(peak_megabytes(), 1),
        "seconds": round(time.perf_counter() - start, 1),
    }
