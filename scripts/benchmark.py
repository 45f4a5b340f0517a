"""Measure what lopt costs; every line of output is one JSON object.

python scripts/benchmark.py compile --blocks 2 4 12            # trunk + one UNF layer over a Transformer's weights
python scripts/benchmark.py compile --blocks 2 4 12 --share role
python scripts/benchmark.py data                               # loading, batches a second, and their share of an inner step
python scripts/benchmark.py data --sources lm1b ./corpus.txt   # streamed, if it is large
python scripts/benchmark.py estimators --out estimators.png    # variance of meta-gradients, by the number of windows
python scripts/benchmark.py memory --steps 2000                # whether a run grows
"""

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def compile_one(blocks: int, share: str) -> None:
    import jax

    from lopt.benchmarks import compile_cost, environment
    from lopt.networks import UNFConfig
    from tasks.transformer import Sizes, transformer, transformer_spec

    spec, (init, _) = transformer_spec(blocks), transformer(Sizes(vocabulary=256, blocks=blocks, head_width=8))
    network = UNFConfig(share=share)  # pyright: ignore[reportArgumentType]  argparse has checked it
    cost = compile_cost(spec, spec.sizes(jax.eval_shape(init, jax.random.key(0))), network)
    print(json.dumps({"benchmark": "compile", "blocks": blocks, "share": share, **cost, **environment()}), flush=True)


def data_one(source: str, steps: int) -> None:
    from lopt.benchmarks import environment
    from tasks.datasets.benchmark import data_cost

    print(json.dumps({"benchmark": "data", **data_cost(source, steps), **environment()}), flush=True)


ESTIMATORS = ("pes", "nres", "gpes", "full_es", "truncated_es", "truncated_backprop", "full_backprop")


def estimators(problem: str, windows: Sequence[int], names: Sequence[str], out: Path | None) -> None:
    """Variances for the final meta-loss, windows of 10 steps: gradient descent on a noisy quadratic, or SGDM on the digits' MLP."""
    from lopt.benchmarks import environment
    from lopt.benchmarks.estimators import gradient_variance, plot_variances
    from lopt.benchmarks.quadratic import GradientDescentConfig, quadratic_task
    from lopt.estimators.full_backprop import FullBackpropConfig
    from lopt.estimators.full_es import FullESConfig
    from lopt.estimators.gpes import GPESConfig
    from lopt.estimators.nres import NRESConfig
    from lopt.estimators.pes import PESConfig
    from lopt.estimators.truncated_backprop import TruncatedBackpropConfig
    from lopt.estimators.truncated_es import TruncatedESConfig
    from lopt.optimizer import LearnedSGDMConfig
    from lopt.trainer import use_all_cores
    from lopt.unroll import UnrollConfig
    from tasks.mlp import MLPConfig

    use_all_cores()
    truncation, records = 10, []
    task, optimizer, settings, trainings = quadratic_task(), GradientDescentConfig(), {"particles": 400, "batched": True}, 50
    if problem == "digits":
        task, optimizer, settings, trainings = MLPConfig(hidden=(16,), batch_size=32).make(), LearnedSGDMConfig(), {}, 10
    configs = {
        "pes": PESConfig(),
        "nres": NRESConfig(),
        "gpes": GPESConfig(reuse=4 * truncation, unroll=UnrollConfig(horizon=truncation, truncation=truncation)),
        "full_es": FullESConfig(),
        "truncated_es": TruncatedESConfig(),
        "truncated_backprop": TruncatedBackpropConfig(),
        "full_backprop": FullBackpropConfig(),
    }
    for count in windows:
        unroll = UnrollConfig(horizon=count * truncation, truncation=truncation, loss_cap=float("inf"))
        for name in names:
            config = dataclasses.replace(configs[name], **settings)
            found = gradient_variance(name, config, unroll, optimizer, task, trainings=trainings)
            records.append(found)
            print(json.dumps({"benchmark": "estimators", "task": task.name, **found, **environment()}), flush=True)
    if out is not None:
        plot_variances(records, out)


def memory(steps: int) -> None:
    from lopt.benchmarks import environment
    from lopt.benchmarks.memory import memory_growth
    from lopt.config import load_file

    found = memory_growth(load_file(ROOT / "configs" / "smoke.py"), steps)
    print(json.dumps({"benchmark": "memory", "config": "smoke", **found, **environment()}), flush=True)


def alone(*arguments: str) -> None:
    """Run one benchmark in a process of its own, so that neither caches nor imports nor peak memory carry over."""
    done = subprocess.run([sys.executable, __file__, *arguments])
    if done.returncode:
        sys.exit(done.returncode)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmark.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("compile", help="time to trace and compile an update network, by number of Transformer blocks")
    command.add_argument(
        "--blocks", type=int, nargs="+", default=[2, 4, 12], metavar="N", help="numbers of blocks (default: 2 4 12)"
    )
    command.add_argument(
        "--share", choices=("none", "role"), default="none", help="coefficients of the UNF layer: each pair's own, or by role"
    )
    command = commands.add_parser("data", help="loading a data set, batches a second, and their share of an inner step")
    command.add_argument(
        "--sources",
        nargs="+",
        default=["digits", "fashion_mnist", "python_docs"],
        metavar="NAME",
        help="data sets as tasks take them (default: digits fashion_mnist python_docs)",
    )
    command.add_argument("--steps", type=int, default=2000, metavar="N", help="inner steps in a compiled loop (default: 2000)")
    command = commands.add_parser("estimators", help="variance of meta-gradient estimators, by the number of windows")
    command.add_argument(
        "--windows",
        type=int,
        nargs="+",
        default=[1, 2, 4, 8, 16, 32, 64],
        metavar="W",
        help="windows of 10 steps (default: 1 2 4 ... 64)",
    )
    command.add_argument("--estimators", nargs="+", choices=ESTIMATORS, default=list(ESTIMATORS), help="default: all")
    command.add_argument(
        "--problem", choices=("quadratic", "digits"), default="quadratic", help="default: quadratic, which is quick"
    )
    command.add_argument("--out", type=Path, metavar="PNG", help="draw them into this file")
    command = commands.add_parser("memory", help="resident memory over a run of the smoke config")
    command.add_argument("--steps", type=int, default=2000, metavar="N", help="outer steps, at least 10 (default: 2000)")
    args = parser.parse_args(argv)
    if args.command == "estimators":
        if min(args.windows) < 1 or (args.out is not None and args.out.suffix != ".png"):
            parser.error("--windows must be at least 1, and --out a .png file")
        estimators(args.problem, args.windows, args.estimators, args.out)
        return
    if args.command == "memory":
        if args.steps < 10:
            parser.error(f"--steps must be at least 10, got {args.steps}")
        memory(args.steps)
        return
    if args.command == "data":
        if args.steps < 1:
            parser.error(f"--steps must be at least 1, got {args.steps}")
        if len(args.sources) == 1:
            data_one(args.sources[0], args.steps)
        else:
            for source in args.sources:
                alone("data", "--sources", source, "--steps", str(args.steps))
        return
    if min(args.blocks) < 1:
        parser.error(f"--blocks must be at least 1, got {min(args.blocks)}")
    if len(args.blocks) == 1:
        compile_one(args.blocks[0], args.share)
        return
    for blocks in args.blocks:
        alone("compile", "--blocks", str(blocks), "--share", args.share)


if __name__ == "__main__":
    main()
