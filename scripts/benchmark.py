"""Measure what lopt costs; every line of output is one JSON object.

python scripts/benchmark.py compile --blocks 2 4 12            # trunk + one UNF layer over a Transformer's weights
python scripts/benchmark.py compile --blocks 2 4 12 --share role
python scripts/benchmark.py data                               # loading, batches a second, and their share of an inner step
python scripts/benchmark.py data --sources lm1b ./corpus.txt   # streamed, if it is large
python scripts/benchmark.py estimators --out estimators.png    # variance of meta-gradients, by the number of windows
python scripts/benchmark.py memory --steps 2000                # whether a run grows
python scripts/benchmark.py throughput --config configs/fashion_mlp.py --profile   # inner steps/s, and what they are spent on
python scripts/benchmark.py scaling --network unf              # the outer step by weights, particles, tensors, truncation, devices
python scripts/benchmark.py in-use                             # a learned optimizer's step beside optax.adam's
python scripts/benchmark.py startup                            # imports, --help, the first outer step
python scripts/benchmark.py plot                               # pictures and tables of all that was recorded

--quick makes any of them run for seconds, to see that it works; --record appends the lines to docs/benchmarks/NAME.jsonl.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lopt.benchmarks.growth import AXIS_VALUES, growth_along_axis
from lopt.benchmarks.options import Sized, at_least, fill_in, png_file
from lopt.benchmarks.records import append, read
from lopt.config import write_atomically

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "docs" / "benchmarks"
IMAGES = ROOT / "docs" / "images" / "benchmarks"
PAGE = ROOT / "docs" / "benchmarks.md"

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
    from lopt.benchmarks.estimators import gradient_variances, on_quadratic
    from lopt.benchmarks.figures import estimators_figure
    from lopt.compilation_cache import use_compilation_cache
    from lopt.optimizer import LearnedSGDMConfig
    from lopt.plots import png
    from lopt.trainer import use_all_cores
    from tasks.mlp import MLPConfig

    use_compilation_cache()
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
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(args.out, png(estimators_figure(records)))


def memory(args: argparse.Namespace) -> Records:
    from lopt.benchmarks.memory import memory_growth
    from lopt.compilation_cache import use_compilation_cache
    from lopt.config import load_file

    use_compilation_cache()
    yield complete("memory", config="smoke", **memory_growth(load_file(ROOT / "configs" / "smoke.py"), args.steps))


def throughput(args: argparse.Namespace) -> Records:
    if len(args.networks) > 1 or len(args.config) > 1:
        options = ("--steps", args.steps, *(("--profile",) if args.profile else ()))
        options += ("--data", args.data) if args.data else ()
        for path in args.config:
            for network in args.networks:
                yield from alone("throughput", "--config", path, "--networks", network, *options)
        return
    if args.profile:
        from lopt.benchmarks.profile import record_operations

        record_operations()
    from lopt.benchmarks.throughput import stand_in, throughput, with_network
    from lopt.config import load_file
    from lopt.trainer import use_all_cores

    use_all_cores()
    experiment = with_network(load_file(args.config[0]), args.networks[0])
    with stand_in(experiment, args.data) as experiment:
        yield complete("throughput", config=args.config[0].stem, **throughput(experiment, args.steps, profile=args.profile))


def scaling(args: argparse.Namespace) -> Records:
    if args.value is not None:
        from lopt.benchmarks.scaling import scaling as measure

        yield complete("scaling", **measure(args.axes[0], args.value, args.network, args.steps))
        return
    for axis in args.axes:
        default, quick, large = AXIS_VALUES[axis]
        options, found = ("--axes", axis, "--network", args.network, "--steps", args.steps), []
        for value in quick if args.quick else [*default, *(large if args.large else [])]:
            for record in alone("scaling", *options, "--value", value):
                found.append(record)
                yield record
        yield growth_along_axis(found)


def in_use(args: argparse.Namespace) -> Records:
    if len(args.weights) > 1:
        for weights in args.weights:
            options = ("--weights", weights, "--networks", *args.networks, "--repeats", args.repeats)
            yield from alone("in-use", *options)
        return
    from lopt.benchmarks.in_use import in_use as measure

    for record in measure(args.weights[0], args.networks, args.repeats):
        yield complete("in-use", **record)


def startup(args: argparse.Namespace) -> Records:
    from lopt.benchmarks.startup import startup as measure

    scripts = [ROOT / "scripts" / f"{name}.py" for name in args.scripts]
    experiment = ("--config", str(ROOT / "configs" / "smoke.py"))
    yield complete("startup", **measure(ROOT / "scripts" / "meta_train.py", experiment, scripts, args.repeats))


def plot(args: argparse.Namespace) -> Records:
    from lopt.benchmarks.figures import FIGURES
    from lopt.benchmarks.tables import TABLES, fill
    from lopt.plots import png

    for file in sorted(args.records.glob("*.jsonl")):
        records, drawn = read(file), args.images / f"{file.stem}.png"
        if file.stem in FIGURES:
            drawn.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(drawn, png(FIGURES[file.stem](records)))
            yield {"benchmark": "plot", "file": str(drawn), "records": len(records)}
        if file.stem in TABLES and args.page.exists():
            page = fill(args.page.read_text(), file.stem, TABLES[file.stem](records))
            write_atomically(args.page, page.encode())


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


NETWORKS = ["unf", "unf_role", "deep_sets"]


def add_throughput(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add(
        "throughput", throughput, "inner steps a second of a config's outer step, against the machine's matrix products"
    )
    default = Sized([ROOT / "configs" / "fashion_mlp.py"], [ROOT / "configs" / "smoke.py"])
    text = "experiments (default: configs/fashion_mlp.py; quick: smoke.py)"
    command.add_argument("--config", type=Path, nargs="+", default=default, metavar="FILE", help=text)
    networks, text = (
        ["config", *NETWORKS, "sgdm"],
        "f, or learned SGDM without one; config: what the file has (default: %(default)s)",
    )
    command.add_argument("--networks", nargs="+", choices=networks, default=Sized(["config"], ["config"]), help=text)
    text = "outer steps that are timed (default: %(default)s)"
    command.add_argument("--steps", type=at_least(1), default=Sized(20, 1), metavar="N", help=text)
    text = "data set for the task; random: noise of its shapes, for one that is not at hand (default: the config's)"
    command.add_argument("--data", metavar="NAME", help=text)
    command.add_argument("--profile", action="store_true", help="also say what an outer step is spent on, by part and operation")


def add_scaling(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add("scaling", scaling, "time and memory of an outer step along one axis at a time, and the slopes of their growth")
    axes, text = Sized(list(AXIS_VALUES), ["particles"]), "what grows (default: %(default)s)"
    command.add_argument("--axes", nargs="+", choices=list(AXIS_VALUES), default=axes, help=text)
    command.add_argument("--network", choices=NETWORKS, default="unf", help="f (default: %(default)s)")
    text = "outer steps timed at each point, at least; more within 2 seconds (default: %(default)s)"
    command.add_argument("--steps", type=at_least(1), default=Sized(3, 1), metavar="N", help=text)
    command.add_argument("--large", action="store_true", help="also 10 million weights and 400 tensors")
    command.add_argument("--value", type=at_least(1), metavar="V", help="this point of the first axis alone, in this process")


def add_in_use(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add("in-use", in_use, "time and memory of a learned optimizer's step beside optax.adam's, gradients given")
    numbers: dict[str, Any] = {"type": at_least(1000), "nargs": "+", "metavar": "N"}
    text = "of the models, about; 10000000 takes 5 GB (default: %(default)s)"
    command.add_argument("--weights", **numbers, default=Sized([10_000, 100_000, 1_000_000], [1_000]), help=text)
    text = "f of the learned optimizers (default: %(default)s)"
    command.add_argument("--networks", nargs="+", choices=NETWORKS, default=Sized(NETWORKS, ["unf"]), help=text)
    text = "calls of each, in turns (default: %(default)s)"
    command.add_argument("--repeats", type=at_least(1), default=Sized(11, 2), metavar="N", help=text)


def add_startup(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add("startup", startup, "seconds until something happens: imports, --help, the first outer step from kept programs")
    names = sorted(file.stem for file in (ROOT / "scripts").glob("*.py"))
    text = "whose --help is asked for (default: %(default)s)"
    command.add_argument("--scripts", nargs="+", choices=names, default=Sized(names, ["benchmark"]), help=text)
    text = "processes of each kind (default: %(default)s)"
    command.add_argument("--repeats", type=at_least(1), default=Sized(5, 1), metavar="N", help=text)


def add_plot(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add("plot", plot, "draw what was recorded, and fill in the tables of docs/benchmarks.md")
    command.add_argument("--records", type=Path, default=RECORDS, metavar="DIR", help="of NAME.jsonl (default: docs/benchmarks)")
    command.add_argument("--images", type=Path, default=IMAGES, metavar="DIR", help="default: docs/images/benchmarks")
    command.add_argument("--page", type=Path, default=PAGE, metavar="FILE", help="default: docs/benchmarks.md")


BENCHMARKS = (add_compile, add_data, add_estimators, add_memory, add_throughput, add_scaling, add_in_use, add_startup, add_plot)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="benchmark.py", description=__doc__, formatter_class=formatter)
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], Records], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run, quick=False, record=None)
        if run is plot:
            return command
        command.add_argument("--quick", action="store_true", help="run for seconds, to see that it works")
        text = "append the lines to DIR/NAME.jsonl as they are measured (default: docs/benchmarks)"
        command.add_argument("--record", type=Path, nargs="?", const=RECORDS, metavar="DIR", help=text)
        return command

    for add_benchmark in BENCHMARKS:
        add_benchmark(add)
    return fill_in(parser.parse_args(argv))


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    for record in args.run(args):
        print(json.dumps(record), flush=True)
        if args.record is not None:
            append(args.record / f"{args.command}.jsonl", record)


if __name__ == "__main__":
    main()
