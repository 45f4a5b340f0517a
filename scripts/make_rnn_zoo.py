"""Train a zoo of recurrent networks on character addition, with what each came to."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from lopt.runtime.program import reporting_errors, take_debug
from lopt.runtime.progress import Stages
from lopt.weight_space.make import ZooConfig, make_zoo, total_weight
from lopt.weight_space.plots import write_histogram
from tasks.addition import AdditionConfig

DESCRIPTION = """\
Train many pairs of GRU cells to add written numbers ("15+20=" -> "35"), each with a learning rate and a batch size of its own, and keep
their weights, hyperparameters, losses and success rates on sums they have not seen: the data set of predict_generalization.py.

Writes into OUT: models/ (shards of weights, safetensors), labels.csv (a line a model), spec.json (the symmetry of the models, inferred
from their loss and checked), manifest.json, success.png (a histogram). The same command goes on where it was cut off, to the same
models.

The defaults, 2,000 models of 32 hidden units on numbers of two digits, take about one and a half hours on two CPU cores and 75 MB.
The paper's zoo: --models 10000 --task.hidden 128 --task.digits 5, for an accelerator; how long its models are trained it does not say.

examples:
  python scripts/make_rnn_zoo.py --out zoo --models 200 --task.hidden 16     # under 3 minutes
  python scripts/make_rnn_zoo.py --out zoo --models 2000"""


DEFAULT = ZooConfig(task=AdditionConfig(digits=2, hidden=32, examples=10_000))


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What the program is given."""

    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Where the zoo is made; one that is there already goes on."""
    zoo: Annotated[ZooConfig, tyro.conf.arg(name="")] = dataclasses.field(default=DEFAULT)
    """Which models."""


def main(argv: Sequence[str] | None = None) -> None:
    argv, debug = take_debug(argv)
    args = tyro.cli(Arguments, prog="make_rnn_zoo.py", description=DESCRIPTION, args=argv, config=(tyro.conf.AvoidSubcommands,))

    from lopt.runtime.compilation_cache import use_compilation_cache
    from lopt.runtime.distributed import use_all_cores

    use_compilation_cache()
    use_all_cores()
    with reporting_errors("make_rnn_zoo.py", debug=debug):
        with Stages(total_weight(args.zoo, args.out)) as view:
            models = make_zoo(args.zoo, args.out, view.stage)
        path = write_histogram(args.out, "success")
    diverged = args.zoo.models - models
    print(f"{models} models in {args.out}" + (f"; {diverged} diverged and were left out" if diverged else ""))
    print(path)
    print(f"next: python scripts/predict_generalization.py --zoo {args.out} --method unf")


if __name__ == "__main__":
    main()
