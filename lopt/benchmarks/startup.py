"""How long a user waits before anything happens: imports, --help, and the first outer step with and without kept programs."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Whatever of the environment changes which programs are kept and how they are compiled.
_SETTINGS = (
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_ENABLE_COMPILATION_CACHE",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
    "XLA_FLAGS",
)


def startup(meta_train: Path, experiment: Sequence[str], scripts: Sequence[Path], repeats: int = 3) -> dict[str, Any]:
    """Wall-clock seconds of whole processes, the median of several.

    Args:
      meta_train: the script that meta-trains.
      experiment: its arguments that say what to train; it is trained for one outer step.
      scripts: whose --help is asked for.
      repeats: of each.

    Returns:
      `import_jax_s`; `import_lopt_s` and `import_trainer_s`, what `lopt` and all that meta-training needs take beyond JAX;
      `help_NAME_s` for every script; and from the command to the end of a run of one outer step `first_step_off_s` (nothing kept),
      `first_step_cold_s` (programs are written) and `first_step_warm_s` (and read).

    Raises:
      subprocess.CalledProcessError: if a process fails.
    """
    python, environment = sys.executable, {name: value for name, value in os.environ.items() if name not in _SETTINGS}

    def seconds(command: Sequence[str | Path], **extra: str) -> float:
        start = time.perf_counter()
        subprocess.run(command, env={**environment, **extra}, check=True, capture_output=True)
        return time.perf_counter() - start

    def median(*command: str | Path) -> float:
        return float(np.median([seconds((python, *command)) for _ in range(repeats)]))

    seconds((python, "-c", "import lopt.training.trainer"))  # the files are in memory from here on
    import_jax = median("-c", "import jax")
    found = {
        "import_jax_s": import_jax,
        "import_lopt_s": median("-c", "import jax, lopt") - import_jax,
        "import_trainer_s": median("-c", "import lopt.training.trainer") - import_jax,
        **{f"help_{script.stem}_s": median(script, "--help") for script in scripts},
    }
    steps: Mapping[str, list[float]] = {"off": [], "cold": [], "warm": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as directory:
            for name, cache in (("off", "off"), ("cold", f"{directory}/cache"), ("warm", f"{directory}/cache")):
                command = (python, meta_train, *experiment, "--outer-steps", "1", "--run-dir", f"{directory}/{name}")
                steps[name].append(seconds(command, LOPT_COMPILATION_CACHE=cache))
    found |= {f"first_step_{name}_s": float(np.median(times)) for name, times in steps.items()}
    return {name: round(value, 2) for name, value in found.items()}
