"""The options of `scripts/benchmark.py` on the command line, those of each benchmark in a function of its name."""

import argparse
from pathlib import Path
from typing import Any

from lopt.benchmarks.growth import AXIS_VALUES
from lopt.runtime.program import at_least


class Sized:
    """The default of an option: one for the benchmark itself, one for --quick."""

    def __init__(self, default: Any, quick: Any):
        self.default, self.quick = default, quick

    def __str__(self) -> str:
        full, quick = (" ".join(map(str, x)) if isinstance(x, list) else str(x) for x in (self.default, self.quick))
        return f"{full}; quick: {quick}"


def fill_in(args: argparse.Namespace) -> argparse.Namespace:
    """The arguments with the one or the other default of the options that were not given, by `args.quick`."""
    for name, value in vars(args).items():
        if isinstance(value, Sized):
            setattr(args, name, value.quick if args.quick else value.default)
    return args


def png_file(text: str) -> Path:
    """The type of the path of a picture."""
    if not text.endswith(".png"):
        raise argparse.ArgumentTypeError(f"must be a .png file, got {text}")
    return Path(text)


KINDS = {  # what happens to runs -> attempts in about an hour
    "kills": 100,
    "signals": 40,
    "power cuts": 300,
    "full disks": 200,
    "processes": 20,
    "damaged files": 300,
}
NETWORKS = ["unf", "unf_bfloat16", "unf_role", "deep_sets"]
OPTIMIZERS = ["celo2", "lopt_direction", "direction", "shampoo_nominal", "muon_nominal"]
RULES, FEATURES = ["direction", "gated", "magnitude", "momentum"], ["celo2", "adafactor", "paper"]
BESIDE = ["xla", "sgdm"]


def compiling(command: argparse.ArgumentParser, root: Path) -> None:
    """Time to trace and compile an update network, by number of Transformer blocks."""
    del root
    numbers: dict[str, Any] = {"type": at_least(1), "nargs": "+", "metavar": "N"}
    command.add_argument("--blocks", **numbers, default=Sized([2, 4, 12], [1]), help="numbers of blocks (default: %(default)s)")
    text = "coefficients of the UNF layer: each pair's own, or by role (default: %(default)s)"
    command.add_argument("--share", choices=("none", "role"), default="none", help=text)


def data(command: argparse.ArgumentParser, root: Path) -> None:
    """Loading a data set, batches a second, and their share of an inner step."""
    del root
    sources = Sized(["digits", "fashion_mnist", "python_docs"], ["digits"])
    text = "data sets as tasks take them (default: %(default)s)"
    command.add_argument("--sources", nargs="+", default=sources, metavar="NAME", help=text)
    text = "inner steps in a compiled loop (default: %(default)s)"
    command.add_argument("--steps", type=at_least(1), default=Sized(2000, 2), metavar="N", help=text)


def estimators(command: argparse.ArgumentParser, root: Path) -> None:
    """Variance of meta-gradient estimators, by the number of windows."""
    del root
    windows = Sized([1, 2, 4, 8, 16, 32, 64], [1, 2])
    text = "windows of 10 steps (default: %(default)s)"
    command.add_argument("--windows", type=at_least(1), nargs="+", default=windows, metavar="W", help=text)
    names = ["pes", "nres", "gpes", "full_es", "truncated_es", "truncated_backprop", "full_backprop"]
    command.add_argument("--estimators", nargs="+", choices=names, default=Sized(names, ["pes"]), help="default: %(default)s")
    text = "gradient descent on a noisy quadratic, which is quick, or SGDM on the digits' MLP (default: %(default)s)"
    command.add_argument("--problem", choices=("quadratic", "digits"), default="quadratic", help=text)
    command.add_argument("--out", type=png_file, metavar="PNG", help="draw them into this file")


def memory(command: argparse.ArgumentParser, root: Path) -> None:
    """Resident memory over a run of the smoke config."""
    del root
    text = "outer steps, at least 10 (default: %(default)s)"
    command.add_argument("--steps", type=at_least(10), default=Sized(2000, 20), metavar="N", help=text)


def throughput(command: argparse.ArgumentParser, root: Path) -> None:
    """Inner steps a second of a config's outer step, against the machine's matrix products."""
    default = Sized([root / "configs" / "fashion_mlp.py"], [root / "configs" / "smoke.py"])
    text = "experiments (default: configs/fashion_mlp.py; quick: smoke.py)"
    command.add_argument("--config", type=Path, nargs="+", default=default, metavar="FILE", help=text)
    networks, text = (
        ["config", *NETWORKS, "sgdm"],
        "f, or learned SGDM without one; config: what the file has (default: %(default)s)",
    )
    command.add_argument("--networks", nargs="+", choices=networks, default=Sized(["config"], ["config"]), help=text)
    text = "in place of the config's: a task's name, or module:function or path/to/file.py:function, which makes one of your own"
    command.add_argument("--task", metavar="NAME", help=text)
    text = "outer steps that are timed (default: %(default)s)"
    command.add_argument("--steps", type=at_least(1), default=Sized(20, 1), metavar="N", help=text)
    text = "data set for the task; random: noise of its shapes, for one that is not at hand (default: the config's)"
    command.add_argument("--data", metavar="NAME", help=text)
    text = "the learned optimizer's rule, not the config's optimizer; features and network are celo2 and deep_sets then, if not given"
    command.add_argument("--rule", choices=RULES, help=text)
    command.add_argument("--features", choices=FEATURES, help="what its network sees; needs --rule")
    text = "widths of the network's pointwise layers (default: the network's own)"
    command.add_argument("--hidden", type=at_least(1), nargs="+", metavar="N", help=text)
    text = "also time, in turns in the same process: the same by XLA alone, the learned SGDM"
    command.add_argument("--beside", nargs="+", choices=BESIDE, default=[], help=text)
    command.add_argument("--profile", action="store_true", help="also say what an outer step is spent on, by part and operation")


def scaling(command: argparse.ArgumentParser, root: Path) -> None:
    """Time and memory of an outer step along one axis at a time, and the slopes of their growth."""
    del root
    axes, text = Sized(list(AXIS_VALUES), ["particles"]), "what grows (default: %(default)s)"
    command.add_argument("--axes", nargs="+", choices=list(AXIS_VALUES), default=axes, help=text)
    text = "f under the paper's rule; Celo2's direction, what is shipped (lopt_direction), its parts (default: %(default)s)"
    command.add_argument("--network", choices=[*NETWORKS, *OPTIMIZERS], default="unf", help=text)
    text = "outer steps timed at each point, at least; more within 2 seconds (default: %(default)s)"
    command.add_argument("--steps", type=at_least(1), default=Sized(3, 1), metavar="N", help=text)
    command.add_argument("--large", action="store_true", help="also 10 million weights and 400 tensors")
    command.add_argument("--value", type=at_least(1), metavar="V", help="this point of the first axis alone, in this process")


def in_use(command: argparse.ArgumentParser, root: Path) -> None:
    """Time and memory of a learned optimizer's step beside optax.adam's, gradients given."""
    del root
    numbers: dict[str, Any] = {"type": at_least(1000), "nargs": "+", "metavar": "N"}
    text = "of the models, about; 10000000 takes 5 GB (default: %(default)s)"
    command.add_argument("--weights", **numbers, default=Sized([10_000, 100_000, 1_000_000], [1_000]), help=text)
    text = (
        "f under the paper's rule; what is shipped (lopt_direction), its parts, and with Muon in its place (default: %(default)s)"
    )
    measured = [*NETWORKS, *OPTIMIZERS, "muon"]
    command.add_argument("--networks", nargs="+", choices=measured, default=Sized(measured, ["unf", "direction"]), help=text)
    text = "calls of each, in turns (default: %(default)s)"
    command.add_argument("--repeats", type=at_least(1), default=Sized(11, 2), metavar="N", help=text)


def startup(command: argparse.ArgumentParser, root: Path) -> None:
    """Seconds until something happens: imports, --help, the first outer step from kept programs."""
    names = sorted(file.stem for file in (root / "scripts").glob("*.py"))
    text = "whose --help is asked for (default: %(default)s)"
    command.add_argument("--scripts", nargs="+", choices=names, default=Sized(names, ["benchmark"]), help=text)
    text = "processes of each kind (default: %(default)s)"
    command.add_argument("--repeats", type=at_least(1), default=Sized(5, 1), metavar="N", help=text)


def reliability(command: argparse.ArgumentParser, root: Path) -> None:
    """What is lost when runs are killed, cut off from power, find the disk full, are started twice, or find files damaged."""
    del root
    text = "what happens to runs (default: %(default)s)"
    command.add_argument("--kinds", nargs="+", choices=[*KINDS], default=[*KINDS], help=text)
    text = "of each kind (default: as many as take about an hour in all; quick: 2)"
    command.add_argument("--attempts", type=at_least(1), default=Sized(None, 2), metavar="N", help=text)
    command.add_argument("--seed", type=at_least(0), default=0, help="of what happens when (default: 0)")


def plot(command: argparse.ArgumentParser, root: Path) -> None:
    """Draw what was recorded, and fill in the tables of docs/benchmarks.md."""
    docs = root / "docs"
    text = "of NAME.jsonl (default: docs/benchmarks)"
    command.add_argument("--records", type=Path, default=docs / "benchmarks", metavar="DIR", help=text)
    text = "default: docs/images/benchmarks"
    command.add_argument("--images", type=Path, default=docs / "images" / "benchmarks", metavar="DIR", help=text)
    command.add_argument("--page", type=Path, default=docs / "benchmarks.md", metavar="FILE", help="default: docs/benchmarks.md")
