"""The paper's tables and pictures, beside ours.

python scripts/paper_tables.py parameters                         # sizes of the update networks, and basis terms a layer
python scripts/paper_tables.py figure2 --task mlp --budget cpu    # meta-train all rivals, race them, draw figure 2
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from rich import box
from rich.console import Console
from rich.table import Table

from lopt.comparison.compare import add_options, compare_by
from lopt.comparison.config import Agenda, ComparisonConfig, make_agenda
from lopt.config import load_file
from lopt.features.presets import PaperFeatures
from lopt.layers.nfn import nfn_layer
from lopt.networks.update import DeepSetsConfig, NetworkConfig, UNFConfig, update_network
from lopt.optimizers.base import LearnedOptimizer, learned_optimizer
from lopt.optimizers.momentum import LearnedMomentumConfig, MomentumRule
from lopt.runtime.program import DEBUG_HELP, prepare, reporting_errors, take_debug
from lopt.symmetry import SpecError, WeightSpec
from lopt.symmetry.describe import count_layer
from tasks.paper_specs import CNN, HEADS, MLP, MLP3, RNN, TRANSFORMER, WeightSpace

ROOT = Path(__file__).resolve().parents[1]
COMPARISONS = ROOT / "configs" / "paper"  # scripts/compare.py carries out any other
DEFAULTS = LearnedMomentumConfig()
# As printed: "Universal Neural Functionals" (NeurIPS 2024), the table of f's sizes; the three scalars are included.
PAPER_PARAMETERS: dict[tuple[str, str], int] = {
    ("MLP", "UNF"): 3_783,
    ("MLP", "DeepSets"): 2_788,
    ("MLP", "NFN"): 3_783,
    ("CNN", "UNF"): 7_369,
    ("CNN", "DeepSets"): 2_788,
    ("CNN", "NFN"): 41_603,
    ("RNN", "UNF"): 8_043,
    ("RNN", "DeepSets"): 2_788,
    ("Transformer", "UNF"): 64_168,
    ("Transformer", "DeepSets"): 2_788,
}


@dataclasses.dataclass(frozen=True)
class ParameterRow:
    """One update network over one spec; `paper` and `ours` are None where there is no such number."""

    task: str
    network: str
    spec: str
    paper: int | None
    ours: int | None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class TermRow:
    """One UNF layer over one spec; `paper` is how many terms the paper's number of parameters implies, if it has one."""

    task: str
    spec: str
    tensors: int
    paper: int | None
    terms: int
    views: int


def num_parameters(optimizer: LearnedOptimizer) -> int:
    """Numbers in theta: f and the three scalars alpha, beta, g0."""
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(optimizer.init, jax.random.key(0))))


def count(config: NetworkConfig, spec: WeightSpec) -> int:
    return num_parameters(dataclasses.replace(DEFAULTS, network=config).make(spec))


def count_nfn(space: WeightSpace, bias: bool) -> int:
    hidden = UNFConfig().hidden
    features = PaperFeatures().make()
    f = update_network(hidden, features, nfn_layer(space.true, hidden[-1], 1, space.sizes, bias=bias))
    return num_parameters(learned_optimizer(MomentumRule(), features, f, space.true))


def unf_rows(space: WeightSpace) -> list[ParameterRow]:
    paper = PAPER_PARAMETERS[space.title, "UNF"]
    ours = count(UNFConfig(terms=None), space.true)
    if space.released is None:
        return [ParameterRow(space.title, "UNF", "true", paper, ours)]
    released = ParameterRow(space.title, "UNF", "released", paper, count(UNFConfig(terms=None), space.released))
    return [released, ParameterRow(space.title, "UNF", "true", None, ours, "the released spec is wrong: tasks/paper_specs.py")]


def nfn_rows(space: WeightSpace) -> list[ParameterRow]:
    paper = PAPER_PARAMETERS.get((space.title, "NFN"))
    try:
        with_bias, without = count_nfn(space, bias=True), count_nfn(space, bias=False)
    except SpecError as error:
        return [ParameterRow(space.title, "NFN", "true", paper, None, str(error))]
    rows = [ParameterRow(space.title, "NFN", "true", paper, with_bias, "with biases")]
    if paper == without:
        note = f"without the {with_bias - without} biases of its last layer, one a tensor and window position"
        rows = [ParameterRow(space.title, "NFN", "true", paper, without, note), dataclasses.replace(rows[0], paper=None)]
    return rows


def parameter_rows() -> list[ParameterRow]:
    """Every update network of the paper over every weight space of the paper."""
    rows = []
    for space in (MLP, CNN, RNN, TRANSFORMER):
        rows += unf_rows(space)
        pointwise = count(DeepSetsConfig(), space.true)
        rows.append(ParameterRow(space.title, "DeepSets", "any", PAPER_PARAMETERS[space.title, "DeepSets"], pointwise))
        rows += nfn_rows(space)
    return rows


def implied_terms(parameters: int, spec: WeightSpec) -> int:
    """Basis terms of the last layer of a UNF with so many parameters: the rest are the scalars, the trunk and the biases."""
    width = DeepSetsConfig().hidden[-1]
    trunk_and_scalars = count(DeepSetsConfig(), spec) - (width + 1)
    terms, remainder = divmod(parameters - trunk_and_scalars - len(spec.paths), width)
    if remainder:
        raise ValueError(f"no whole number of terms gives {parameters} parameters over {len(spec.paths)} tensors")
    return terms


def term_rows() -> list[TermRow]:
    """What one UNF layer over every weight space is made of."""
    rows = []
    for space in (MLP, MLP3, CNN, RNN, TRANSFORMER, HEADS):
        for label, spec in (("released", space.released), ("true", space.true)):
            if spec is not None:
                layer, published = count_layer(spec), spec == (space.released or space.true)
                parameters = PAPER_PARAMETERS.get((space.title, "UNF")) if published else None
                paper = None if parameters is None else implied_terms(parameters, spec)
                rows.append(TermRow(space.title, label, len(spec.paths), paper, layer.num_terms, layer.views))
    return rows


def empty_table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    view = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in left:
        view.add_column(name)
    for name in right:
        view.add_column(name, justify="right", no_wrap=True)
    return view


def number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def print_parameters(console: Console) -> None:
    rows = parameter_rows()
    notes = list(dict.fromkeys(row.note for row in rows if row.note))
    view = empty_table("Parameters of f, with alpha, beta and g0", ("task", "f", "spec"), ("paper", "ours", "note"))
    for row in rows:
        note = f"({notes.index(row.note) + 1})" if row.note else ""
        view.add_row(row.task, row.network, row.spec, number(row.paper), number(row.ours), note)
    console.print(view)
    for index, note in enumerate(notes):
        console.print(f"({index + 1}) {note}", markup=False, highlight=False)
    view = empty_table("\nOne UNF layer", ("task", "spec"), ("tensors", "paper's terms", "our terms", "pooled views"))
    for row in term_rows():
        view.add_row(row.task, row.spec, *map(number, (row.tensors, row.paper, row.terms, row.views)))
    console.print(view)


FIGURE2 = f"""\
Meta-train every rival of configs/paper/TASK.py from several seeds, race them against tuned Adam and SGDM, and draw the paper's figure 2
with the budget written in it. The order of work is seed 0 of all rivals, then seed 1, so that a part is a comparison too.

Runs are RUNS/TASK-BUDGET-RIVAL-SEED, as scripts/meta_train.py writes them; races are kept in RUNS/TASK-BUDGET-races. Ctrl-C saves, and
the same command goes on; what is done is not done again. The report is written after each seed:
  figure2.png           training loss over inner steps, held-out loss over outer steps
  README.md             picture, table, budget, devices, what differs from the paper, an independent re-run's figures beside ours
  table.md .csv .json   the figures;  curves.npz  the races;  metrics.npz  the meta-trainings
  theta/                the meta-parameters that were raced

{DEBUG_HELP}"""


def comparisons() -> dict[str, Path]:
    """The comparisons' config files by name."""
    return {path.stem: path for path in sorted(COMPARISONS.glob("[!_]*.py"))}


def add_figure2(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--task", required=True, choices=comparisons(), help="a comparison of configs/paper/; one of your own: scripts/compare.py"
    )
    parser.add_argument(
        "--budget", default="paper", metavar="NAME", help="one of the comparison's: paper, cpu, smoke (default: paper)"
    )
    add_options(parser, "runs/paper")
    text = "where to write the report (default: RUNS/TASK-BUDGET-report; without DIR: docs/reproduction/TASK-BUDGET)"
    parser.add_argument("--out", nargs="?", type=Path, const=True, metavar="DIR", help=text)


def agenda_of(args: argparse.Namespace) -> Agenda:
    config: ComparisonConfig = load_file(comparisons()[args.task])
    return make_agenda(args.task, config, args.budget, args.runs_dir)


def report_dir(args: argparse.Namespace, agenda: Agenda) -> Path:
    if args.out is None:
        return args.runs_dir / f"{agenda.name}-report"
    return ROOT / "docs" / "reproduction" / agenda.name if args.out is True else args.out


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="paper_tables.py", description="The paper's tables and pictures, beside ours.")
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    text = "sizes of the update networks beside the paper's, and basis terms a layer"
    commands.add_parser("parameters", help=text, description=text)
    formatter = argparse.RawDescriptionHelpFormatter
    text = "learned optimizers meta-trained, raced and drawn as in the paper's figure 2"
    add_figure2(commands.add_parser("figure2", help=text, description=FIGURE2, formatter_class=formatter))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    argv, debug = take_debug(argv)
    args, console = argument_parser().parse_args(argv), Console()
    if args.what == "parameters":
        print_parameters(console)
        return 0
    prepare()
    with reporting_errors("paper_tables.py", debug=debug):
        agenda = agenda_of(args)
        return compare_by(args, agenda, report_dir(args, agenda), console)


if __name__ == "__main__":
    sys.exit(main())
