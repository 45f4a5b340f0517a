"""Meta-train a learned optimizer; run again on the same directory to resume.

python scripts/meta_train.py --config configs/digits_mlp.py --run-dir runs/digits --outer-steps 300 --seed 1
"""

import dataclasses
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from lopt.config import ConfigError, parse_experiment

ROOT = Path(__file__).resolve().parents[1]
DESCRIPTION = """\
Meta-train the learned optimizer that a config file describes. Any field of the config can be overridden.

Writes into RUN: config.json, metrics.jsonl (one object an outer step) and checkpoints/. A run that is there already goes on
from its newest checkpoint, to the same theta as an unbroken run, bit for bit; Ctrl-C saves first.
Then: python scripts/evaluate.py --run-dir RUN

Compiled programs are kept below ~/.cache/lopt; LOPT_COMPILATION_CACHE=DIR moves them, LOPT_COMPILATION_CACHE=off keeps none.

Several processes, on one machine or many, work on one run: each is started with the same arguments and a --process-id of its own, with
--coordinator (host and port of process 0) and --num-processes. RUN must be a directory that all of them see."""


def main(argv: Sequence[str] | None = None) -> None:
    from lopt.runtime.distributed import ProcessConfig  # imports JAX; does not use it

    @dataclasses.dataclass(frozen=True)
    class Start(ProcessConfig):
        """How this process starts; nothing of it is part of the experiment."""

        restart: bool = False
        """Begin anew; a run that is in RUN is kept beside it, as RUN.1 or the next number."""
        strict: bool = False
        """Refuse to go on with other code, versions, devices or kernels than before, where theta would not be the same bit for bit."""

    config, run_dir, start = parse_experiment(
        argv,
        prog="meta_train.py",
        description=DESCRIPTION,
        config_dir=ROOT / "configs",
        help_config=ROOT / "configs" / "digits_mlp.py",
        extra=Start(),
    )
    # Imported here, so that --help and a wrong argument answer at once.
    from lopt.layers.kernels.build import use_native_kernels
    from lopt.runtime.compilation_cache import use_compilation_cache
    from lopt.runtime.distributed import PeerError, end_at_once, is_main, join_processes, use_all_cores
    from lopt.runtime.locks import BusyError
    from lopt.runtime.meeting import MeetingError
    from lopt.training.checkpoint import CheckpointError
    from lopt.training.metrics import MetricsError
    from lopt.training.trainer import DivergedError, meta_train
    from tasks.datasets import DatasetError

    use_compilation_cache()
    use_native_kernels()
    try:
        if start.is_one_of_many:
            join_processes(start)
        else:
            use_all_cores()
        result = meta_train(config, run_dir, restart=start.restart, strict=start.strict)
    except MeetingError as error:
        sys.exit(f"meta_train.py: {error}")
    except (
        *(BusyError, ConfigError, CheckpointError, DatasetError, DivergedError, MetricsError, PeerError, ValueError, OSError),
    ) as error:
        if start.is_one_of_many:
            end_at_once(f"meta_train.py: {error}")
        sys.exit(f"meta_train.py: {error}")
    if not is_main():
        return
    if result.interrupted:
        print(f"stopped after outer step {result.step} of {config.outer_steps}, all saved; the same command goes on from there")
    else:
        print(f"{result.step} outer steps done; next: python scripts/evaluate.py --run-dir {run_dir}")


if __name__ == "__main__":
    warnings.formatwarning = lambda message, *_: f"meta_train.py: {message}\n"  # for people: they do not look for it in the code
    main()
