"""Meta-train a learned optimizer; run again on the same directory to resume.

python scripts/meta_train.py --config configs/digits_mlp.py --run-dir runs/digits --outer-steps 300 --seed 1
"""

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path

from lopt.config import parse_experiment
from lopt.runtime.program import DEBUG_HELP, reporting_errors, said, take_debug

ROOT = Path(__file__).resolve().parents[1]
DESCRIPTION = f"""\
Meta-train the learned optimizer that a config file describes. Any field of the config can be overridden.

Writes into RUN: config.json, metrics.jsonl (one object an outer step) and checkpoints/. A run that is there already goes on
from its newest checkpoint, to the same theta as an unbroken run, bit for bit; Ctrl-C saves first.
Then: python scripts/evaluate.py --run-dir RUN

A task of your own takes the file's place by the name of the function that makes it, and its parameters are options:
  --task my_task.py:make_task --task.width 64

Compiled programs are kept below ~/.cache/lopt; LOPT_COMPILATION_CACHE=DIR moves them, LOPT_COMPILATION_CACHE=off keeps none.

Several processes, on one machine or many, work on one run: each is started with the same arguments and a --process-id of its own, with
--coordinator (host and port of process 0) and --num-processes. RUN must be a directory that all of them see.

{DEBUG_HELP}"""


def main(argv: Sequence[str] | None = None) -> None:
    from lopt.runtime.distributed import ProcessConfig  # imports JAX; does not use it
    from lopt.task.base import TaskConfig
    from lopt.task.named import task_config

    @dataclasses.dataclass(frozen=True)
    class Options(ProcessConfig):
        """How this process starts; nothing of it is part of the experiment."""

        restart: bool = False
        """Begin anew; a run that is in RUN is kept beside it, as RUN.1 or the next number."""
        strict: bool = False
        """Refuse to go on with other code, versions, devices or kernels than before, where theta would not be the same bit for bit."""

    argv, debug = take_debug(argv)
    with reporting_errors("meta_train.py", debug=debug):
        config, run_dir, start = parse_experiment(
            argv,
            prog="meta_train.py",
            description=DESCRIPTION,
            config_dir=ROOT / "configs",
            help_config=ROOT / "configs" / "digits_mlp.py",
            extra=Options(),
            readers={TaskConfig: task_config},
        )
        # Imported here, so that --help and a wrong argument answer at once.
        from lopt.layers.kernels.build import use_native_kernels
        from lopt.runtime.compilation_cache import use_compilation_cache
        from lopt.runtime.distributed import end_at_once, is_main, join_processes, use_all_cores
        from lopt.runtime.meeting import MeetingError
        from lopt.training.trainer import meta_train

        use_compilation_cache()
        use_native_kernels()
        try:
            if start.is_one_of_many:
                join_processes(start)
            else:
                use_all_cores()
            result = meta_train(config, run_dir, restart=start.restart, strict=start.strict)
        except MeetingError:
            raise
        except Exception as error:
            if start.is_one_of_many:
                end_at_once(said("meta_train.py", error, debug=debug))
            raise
    if not is_main():
        return
    if result.step > config.outer_steps:
        print(
            f"{run_dir} has {result.step} outer steps already, more than the {config.outer_steps} asked for: nothing is changed"
        )
    elif result.interrupted:
        print(f"stopped after outer step {result.step} of {config.outer_steps}, all saved; the same command goes on from there")
    else:
        print(f"{result.step} outer steps done; next: python scripts/evaluate.py --run-dir {run_dir}")


if __name__ == "__main__":
    warnings.formatwarning = lambda message, *_: f"meta_train.py: {message}\n"  # for people: they do not look for it in the code
    main()
