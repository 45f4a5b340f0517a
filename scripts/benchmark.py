"""Measure what lopt costs; every line of output is one JSON object.

python scripts/benchmark.py compile --blocks 2 4 12            # trunk + one UNF layer over a Transformer's weights
python scripts/benchmark.py compile --blocks 2 4 12 --share role
python scripts/benchmark.py data                               # loading, batches a second, and their share of an inner step
python scripts/benchmark.py data --sources lm1b ./corpus.txt   # streamed, if it is large
python scripts/benchmark.py estimators --out estimators.png    # variance of meta-gradients, by the number of windows
python scripts/benchmark.py memory --steps 2000                # whether a run grows

--quick makes any of them run for seconds, to see that it works; --record appends the lines to docs/benchmarks/NAME.jsonl.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lopt.benchmarks.records import append

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "docs" / "benchmarks"

Records = Iterator[dict[str, Any]]  # each complete: what was measured, and where


def compiling(args: argparse.Namespace) -> Records:
    if len(args.blocks) > 1:
        for blocks in args.blocks:
            yield from alone("compile", "--blocks", blocks, "--share", args.share)
        return
    import jax

    from lopt.benchmarks.compiling import compile_cost
    from lopt.networks import UNFConfig
    from tasks.transformer import Sizes, transformer, transformer_spec

    blocks = args.blocks[0]
    spec, (init, _) = transformer_spec(blocks), transformer(Sizes(vocabulary=256, blocks=blocks, head_width=8))
    cost = compile_cost(spec, spec.sizes(jax.eval_shape(init, jax.random.key(0))), UNFConfig(share=args.share))
    yield complete("compile", blocks=blocks, share=args.share, **cost)


def data(args: argparse.Namespace) -> Records:
    if len(args.sources) > 1:
        for source in args.sources:
            yield from alone("data", "--sources", source, "--steps", args.steps)
        return
    from tasks.datasets.benchmark import data_cost

    yield complete("data", **data_cost(args.sources[0], args.steps))


def estimators(args: argparse.Namespace) -> Records:
    from lopt.benchmarks.estimators import gradient_variances, on_quadratic, plot_variances
    from lopt.optimizer import LearnedSGDMConfig
    from lopt.trainer import use_all_cores
    from tasks.mlp import MLPConfig

    use_all_cores()
    if args.problem == "quadratic":
        found = on_quadratic(args.estimators, args.windows)
    else:
        task = MLPConfig(hidden=(16,), batch_size=32).make()
        found = gradient_variances(args.estimators, args.windows, LearnedSGDMConfig(), task, trainings=10)
    records = []
    for record in found:
        records.append(record)
        yield complete("estimators", **record)
    if args.out is not None:
        plot_variances(records, args.out)


def memory(args: argparse.Namespace) -> Records:
    from lopt.benchmarks.memory import memory_growth
    from lopt.config import load_file

    yield complete("memory", config="smoke", **memory_growth(load_file(ROOT / "configs" / "smoke.py"), args.steps))


def complete(name: str, **measured: Any) -> dict[str, Any]:
    """A record with what its figures depend on."""
    from lopt.environment import stamp

    return {"benchmark": name, **measured, **stamp()}


def alone(*arguments: Any) -> Records:
    """The records of one benchmark in a process of its own, so that neither caches nor imports nor peak memory carry over."""
    done = subprocess.run([sys.executable, __file__, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    yield from map(json.loads, done.stdout.splitlines())


class Sized:
    """The default of an option: one for the benchmark itself, one for --quick."""

    def __init__(self, default: Any, quick: Any):
        self.default, self.quick = default, quick

    def __str__(self) -> str:
        full, quick = (" ".join(map(str, x)) if isinstance(x, list) else str(x) for x in (self.default, self.quick))
        return f"{full}; quick: {quick}"


def at_least(minimum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}, got {text}")
        return int(text)

    return parse


def png_file(text: str) -> Path:
    if not text.endswith(".png"):
        raise argparse.ArgumentTypeError(f"must be a .png file, got {text}")
    return Path(text)


def add_compile(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add("compile", compiling, "time to trace and compile an update network, by number of Transformer blocks")
    numbers: dict[str, Any] = {"type": at_least(1), "nargs": "+", "metavar": "N"}
    command.add_argument("--blocks", **numbers, default=Sized([2, 4, 12], [1]), help="numbers of blocks (default: %(default)s)")
    text = "coefficients of the UNF layer: each pair's own, or by role (default: %(default)s)"
    command.add_argument("--share", choices=("none", "role"), default="none", help=text)


def add_data(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add("data", data, "loading a data set, batches a second, and their share of an inner step")
    sources = Sized(["digits", "fashion_mnist", "python_docs"], ["digits"])
    text = "data sets as tasks take them (default: %(default)s)"
    command.add_argument("--sources", nargs="+", default=sources, metavar="NAME", help=text)
    text = "inner steps in a compiled loop (default: %(default)s)"
    command.add_argument("--steps", type=at_least(1), default=Sized(2000, 2), metavar="N", help=text)


def add_estimators(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add("estimators", estimators, "variance of meta-gradient estimators, by the number of windows")
    windows = Sized([1, 2, 4, 8, 16, 32, 64], [1, 2])
    text = "windows of 10 steps (default: %(default)s)"
    command.add_argument("--windows", type=at_least(1), nargs="+", default=windows, metavar="W", help=text)
    names = ["pes", "nres", "gpes", "full_es", "truncated_es", "truncated_backprop", "full_backprop"]
    command.add_argument("--estimators", nargs="+", choices=names, default=Sized(names, ["pes"]), help="default: %(default)s")
    text = "gradient descent on a noisy quadratic, which is quick, or SGDM on the digits' MLP (default: %(default)s)"
    command.add_argument("--problem", choices=("quadratic", "digits"), default="quadratic", help=text)
    command.add_argument("--out", type=png_file, metavar="PNG", help="draw them into this file")


def add_memory(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add("memory", memory, "resident memory over a run of the smoke config")
    text = "outer steps, at least 10 (default: %(default)s)"
    command.add_argument("--steps", type=at_least(10), default=Sized(2000, 20), metavar="N", help=text)


BENCHMARKS = (add_compile, add_data, add_estimators, add_memory)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="benchmark.py", description=__doc__, formatter_class=formatter)
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], Records], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        command.add_argument("--quick", action="store_true", help="run for seconds, to see that it works")
        text = "append the lines to DIR/NAME.jsonl as they are measured (default: docs/benchmarks)"
        command.add_argument("--record", type=Path, nargs="?", const=RECORDS, metavar="DIR", help=text)
        return command

    for add_benchmark in BENCHMARKS:
        add_benchmark(add)
    args = parser.parse_args(argv)
    for name, value in vars(args).items():
        if isinstance(value, Sized):
            setattr(args, name, value.quick if args.quick else value.default)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    for record in args.run(args):
        print(json.dumps(record), flush=True)
        if args.record is not None:
            append(args.record / f"{args.command}.jsonl", record)


if __name__ == "__main__":
    main()
