"""Meta-train a learned optimizer; run again on the same directory to resume.

python scripts/meta_train.py --config configs/digits_mlp.py --run-dir runs/digits --outer-steps 300 --seed 1
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from lopt.config import ConfigError, parse_experiment

ROOT = Path(__file__).resolve().parents[1]
DESCRIPTION = """\
Meta-train the learned optimizer that a config file describes. Any field of the config can be overridden.

Writes into RUN: config.json, metrics.jsonl (one object an outer step) and checkpoints/. A run that is there already goes on
from its newest checkpoint, to the same theta as an unbroken run, bit for bit; Ctrl-C saves first.
Then: python scripts/evaluate.py --run-dir RUN"""


def main(argv: Sequence[str] | None = None) -> None:
    config, run_dir = parse_experiment(
        argv,
        prog="meta_train.py",
        description=DESCRIPTION,
        config_dir=ROOT / "configs",
        help_config=ROOT / "configs" / "digits_mlp.py",
    )
    # Imported here, so that --help and a wrong argument answer at once.
    from lopt.checkpoint import CheckpointError
    from lopt.metrics import MetricsError
    from lopt.trainer import DivergedError, meta_train, use_all_cores
    from tasks.datasets import DatasetError

    use_all_cores()
    try:
        result = meta_train(config, run_dir)
    except (ConfigError, CheckpointError, DatasetError, DivergedError, MetricsError, ValueError, OSError) as error:
        sys.exit(f"meta_train.py: {error}")
    if result.interrupted:
        print(f"stopped after outer step {result.step} of {config.outer_steps}, all saved; the same command goes on from there")
    else:
        print(f"{result.step} outer steps done; next: python scripts/evaluate.py --run-dir {run_dir}")


if __name__ == "__main__":
    main()
