"""Measure what lopt costs; every line of output is one JSON object.

python scripts/benchmark.py compile --blocks 2 4 12            # trunk + one UNF layer over a Transformer's weights
python scripts/benchmark.py compile --blocks 2 4 12 --share role
python scripts/benchmark.py data                               # loading, batches a second, and their share of an inner step
python scripts/benchmark.py data --sources lm1b ./corpus.txt   # streamed, if it is large
python scripts/benchmark.py estimators --out estimators.png    # variance of meta-gradients, by the number of windows
python scripts/benchmark.py memory --steps 2000                # whether a run grows
python scripts/benchmark.py throughput --config configs/fashion_mlp.py --profile   # inner steps/s, and what they are spent on
python scripts/benchmark.py throughput --rule direction --hidden 8 8 --beside xla sgdm   # the kernel over XLA, in one process
python scripts/benchmark.py scaling --network unf              # the outer step by weights, particles, tensors, truncation, devices
python scripts/benchmark.py in-use                             # a learned optimizer's step beside optax.adam's
python scripts/benchmark.py startup                            # imports, --help, the first outer step
python scripts/benchmark.py reliability                    # kills, power cuts, full disks and the like: what was lost
python scripts/benchmark.py plot                               # pictures and tables of all that was recorded

--quick makes any of them run for seconds, to see that it works; --record appends the lines to docs/benchmarks/NAME.jsonl.
"""

import argparse
import dataclasses
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lopt.benchmarks import options
from lopt.benchmarks.growth import AXIS_VALUES, growth_along_axis
from lopt.benchmarks.options import fill_in
from lopt.benchmarks.records import append, read
from lopt.config import write_atomically
from lopt.runtime.program import reporting_errors, take_debug

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "docs" / "benchmarks"

Records = Iterator[dict[str, Any]]  # each complete: what was measured, and where
Measure = Callable[[argparse.Namespace], Records]
AddOptions = Callable[[argparse.ArgumentParser, Path], None]  # the second is the root of the project


def compiling(args: argparse.Namespace) -> Records:
    if len(args.blocks) > 1:
        for blocks in args.blocks:
            yield from alone("compile", "--blocks", blocks, "--share", args.share)
        return
    import jax

    from lopt.benchmarks.compiling import compile_cost
    from lopt.networks.update import UNFConfig
    from tasks.transformer import Sizes, transformer, transformer_spec

    blocks = args.blocks[0]
    spec, (init, _) = transformer_spec(blocks), transformer(Sizes(vocabulary=256, blocks=blocks, head_width=8))
    cost = compile_cost(spec, spec.sizes(jax.eval_shape(init, jax.random.key(0))), UNFConfig(share=args.share, terms=None))
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
    from lopt.optimizers.momentum import LearnedSGDMConfig
    from lopt.reporting.plots import png
    from lopt.runtime.compilation_cache import use_compilation_cache
    from lopt.runtime.distributed import use_all_cores
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
    from lopt.config import load_file
    from lopt.runtime.compilation_cache import use_compilation_cache

    use_compilation_cache()
    yield complete("memory", config="smoke", **memory_growth(load_file(ROOT / "configs" / "smoke.py"), args.steps))


def throughput(args: argparse.Namespace) -> Records:
    if (args.features or args.hidden) and not args.rule:
        sys.exit("--features and --hidden are of a learned optimizer that --rule makes: give it too")
    given = (("--data", args.data), ("--task", args.task))
    options = ("--steps", args.steps, *(part for pair in given if pair[1] for part in pair))
    for name in ("rule", "features", "hidden", "beside"):
        chosen = getattr(args, name) or []
        options += (f"--{name}", *([chosen] if isinstance(chosen, str) else chosen)) if chosen else ()
    if len(args.networks) > 1 or len(args.config) > 1:
        options += ("--profile",) if args.profile else ()
        for path, network in itertools.product(args.config, args.networks):
            yield from alone("throughput", "--config", path, "--networks", network, *options)
        return
    from lopt.benchmarks.profile import record_operations
    from lopt.benchmarks.throughput import stand_in, throughput, with_network, with_rule
    from lopt.config import load_file
    from lopt.layers.kernels.build import use_native_kernels
    from lopt.runtime.distributed import use_all_cores
    from lopt.task.named import task_config

    timed: dict[str, Any] = {}
    if args.profile:  # timed in a process of its own: recording operations takes time too
        (timed,) = alone("throughput", "--config", args.config[0], "--networks", args.networks[0], *options)
        record_operations()
    use_all_cores()
    use_native_kernels()
    experiment, network = load_file(args.config[0]), args.networks[0]
    if args.rule:
        experiment = with_rule(experiment, args.rule, args.features or "celo2", network, args.hidden)
    else:
        experiment = with_network(experiment, network)
    if args.task:
        experiment = dataclasses.replace(experiment, task=task_config(args.task))
    with stand_in(experiment, args.data) as experiment:
        found = throughput(experiment, 1 if args.profile else args.steps, profile=args.profile, beside=args.beside)
    yield complete("throughput", **{"config": args.config[0].stem, **found, **timed})


def scaling(args: argparse.Namespace) -> Records:
    if args.value is not None:
        from lopt.benchmarks.scaling import scaling as measure
        from lopt.layers.kernels.build import use_native_kernels

        use_native_kernels()
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
    from lopt.layers.kernels.build import use_native_kernels

    use_native_kernels()
    for record in measure(args.weights[0], args.networks, args.repeats):
        yield complete("in-use", **record)


def startup(args: argparse.Namespace) -> Records:
    from lopt.benchmarks.startup import startup as measure

    scripts = [ROOT / "scripts" / f"{name}.py" for name in args.scripts]
    experiment = ("--config", str(ROOT / "configs" / "smoke.py"))
    yield complete("startup", **measure(ROOT / "scripts" / "meta_train.py", experiment, scripts, args.repeats))


def reliability(args: argparse.Namespace) -> Records:
    from lopt.benchmarks.reliability import command
    from lopt.benchmarks.reliability import reliability as measure
    from lopt.config import load_file
    from lopt.optimizers.momentum import LearnedSGDMConfig
    from lopt.runtime.compilation_cache import use_compilation_cache
    from lopt.training.held_out import HeldOutConfig

    use_compilation_cache()
    config = ROOT / "configs" / "smoke.py"
    held_out = HeldOutConfig(every=3, steps=20, seeds=2)
    experiment = dataclasses.replace(load_file(config), optimizer=LearnedSGDMConfig(), held_out=held_out)
    script = command(ROOT / "scripts" / "meta_train.py", config)
    for found in measure(experiment, script, args.kinds, args.attempts, args.seed):
        yield complete("reliability", **found)


def plot(args: argparse.Namespace) -> Records:
    from lopt.benchmarks.figures import FIGURES
    from lopt.benchmarks.tables import TABLES, fill
    from lopt.reporting.plots import png

    for file in sorted(args.records.glob("*.jsonl")):
        records, drawn = read(file), args.images / f"{file.stem}.png"
        if file.stem in FIGURES:
            drawn.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(drawn, png(FIGURES[file.stem](records)))
            yield {"benchmark": "plot", "file": str(drawn), "records": len(records)}
        for page in (args.page, args.page.with_name("reliability.md")) if file.stem in TABLES else ():
            if page.exists():
                write_atomically(page, fill(page.read_text(), file.stem, TABLES[file.stem](records)).encode())


def complete(name: str, **measured: Any) -> dict[str, Any]:
    """A record with what its figures depend on."""
    from lopt.runtime.environment import stamp

    return {"benchmark": name, **measured, **stamp()}


def alone(*arguments: Any) -> Records:
    """The records of one benchmark in a process of its own, so that neither caches nor imports nor peak memory carry over."""
    done = subprocess.run([sys.executable, __file__, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    yield from map(json.loads, done.stdout.splitlines())


# name -> what measures, and its options, whose docstring is its help
BENCHMARKS: dict[str, tuple[Measure, AddOptions]] = {
    "compile": (compiling, options.compiling),
    "data": (data, options.data),
    "estimators": (estimators, options.estimators),
    "memory": (memory, options.memory),
    "throughput": (throughput, options.throughput),
    "scaling": (scaling, options.scaling),
    "in-use": (in_use, options.in_use),
    "startup": (startup, options.startup),
    "reliability": (reliability, options.reliability),
    "plot": (plot, options.plot),
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="benchmark.py", description=__doc__, formatter_class=formatter)
    commands = parser.add_subparsers(dest="command", required=True)

    for name, (run, add_options) in BENCHMARKS.items():
        command = commands.add_parser(name, help=add_options.__doc__, description=add_options.__doc__)
        command.set_defaults(run=run, quick=False, record=None)
        add_options(command, ROOT)
        if run is plot:
            continue
        command.add_argument("--quick", action="store_true", help="run for seconds, to see that it works")
        text = "append the lines to DIR/NAME.jsonl as they are measured (default: docs/benchmarks)"
        command.add_argument("--record", type=Path, nargs="?", const=RECORDS, metavar="DIR", help=text)
    return fill_in(parser.parse_args(argv))


def main(argv: Sequence[str] | None = None) -> None:
    argv, debug = take_debug(argv)
    args = parse(argv)
    with reporting_errors("benchmark.py", debug=debug):
        for record in args.run(args):
            print(json.dumps(record), flush=True)
            if args.record is not None:
                append(args.record / f"{args.command}.jsonl", record)


if __name__ == "__main__":
    main()
