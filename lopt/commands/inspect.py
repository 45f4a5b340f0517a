"""Print the permutation symmetries of a task's weights, or of any function's, as tables."""

import argparse
import dataclasses
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
from rich import box
from rich.console import Console
from rich.table import Table

from lopt.config import ConfigError, LoptError, parse_part
from lopt.config.importing import import_file
from lopt.runtime.program import DEBUG_HELP, reporting_errors, take_debug
from lopt.symmetry import WeightSpec, infer_spec
from lopt.symmetry.compare import same_group, same_up_to_names, without_single_indices
from lopt.symmetry.describe import Description, describe
from lopt.task.base import TaskConfig
from lopt.task.named import task_config, task_names

C_IN, C_OUT = 32, 1  # of the paper's last layer

DESCRIPTION = f"""\
Infer which permutations of the axes of a function's weights leave its value unchanged, and print them:

  weights        leaf, shape, axis names; terms: basis terms of a UNF layer that write to the leaf
  permutations   size, and the leaves that each moves; then the axes whose order carries meaning, marked with !
  UNF layer      terms in all, pooled arrays, parameters with {C_IN} input channels and {C_OUT} output channel

Axes of one name move together; (a b) is one axis made of two, row-major. For a task, its own spec is printed, and whether the
inferred one is the same but for names; if not, both are."""
READERS = {TaskConfig: task_config}
EPILOG = """\
a file for --module, here net.py, whose function takes no arguments and returns (fn, params, *inputs):

  import jax, jax.numpy as jnp

  def network():
      params = {"hidden": jnp.zeros((4, 3)), "head": jnp.zeros((3, 2))}
      fn = lambda params, x: jnp.tanh(x @ params["hidden"]) @ params["head"]
      return fn, params, jnp.ones((5, 4))

examples:
  {prog} --task mlp --task.hidden 64 64
  {prog} --task my_task.py:make_task
  {prog} --module net.py:network

{debug}"""


class InspectError(LoptError):
    """What was asked for cannot be inspected; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is inspected: `fn(params, *inputs)`, and the spec it comes with, if any."""

    title: str
    fn: Callable[..., Any]
    params: Any
    inputs: tuple[Any, ...]
    spec: WeightSpec | None = None


def from_task(name: str, fields: Sequence[str] = (), prog: str = "inspect") -> Subject:
    """What a task trains, and its own spec; `fields` are options of the task."""
    config = parse_part(task_config(name), fields, "task", prog=prog, description=DESCRIPTION, readers=READERS)
    try:
        task = config.make().example
    except LoptError as error:
        raise InspectError(f"task '{name}' cannot be made: {error}") from error
    key = jax.random.key(0)
    return Subject(f"task {name}", task.loss, task.init(key), (key, task.datasets.at(0).train.batch(key)), task.spec)


def _raised(error: Exception, file: Path) -> str:
    """One line: where in the file, if there, and what."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file.resolve()]
    lines += [error.lineno] if isinstance(error, SyntaxError) and error.filename == str(file.resolve()) else []
    where = f"{file}, line {lines[-1]}" if lines else str(file)
    message = str(error).strip().partition("\n")[0]
    return f"{where}: {type(error).__name__}" + (f": {message}" if message else "")


def _import(file: Path) -> ModuleType:
    try:
        return import_file(file, again=True)
    except ConfigError as error:
        raise InspectError(str(error)) from error
    except Exception as error:
        raise InspectError(_raised(error, file)) from error


def from_module(text: str) -> Subject:
    """What a function of a file returns, named `FILE.py:FUNCTION`."""
    path, colon, name = text.rpartition(":")
    if not colon or not path or not name:
        raise InspectError(f"--module takes FILE.py:FUNCTION, not '{text}'")
    file = Path(path)
    module = _import(file)
    build = getattr(module, name, None)
    if not callable(build):
        defined = [
            n for n, value in vars(module).items() if callable(value) and getattr(value, "__module__", "") == module.__name__
        ]
        raise InspectError(f"{file} defines no function '{name}'; it defines: {', '.join(sorted(defined)) or 'none'}")
    try:
        built = build()
    except Exception as error:
        raise InspectError(_raised(error, file)) from error
    if not isinstance(built, tuple) or len(built) < 2 or not callable(built[0]):
        raise InspectError(f"{file}: {name}() must return (fn, params, *inputs) with a callable fn, not {type(built).__name__}")
    fn, params, *inputs = built
    return Subject(text, fn, params, tuple(inputs))


def infer(subject: Subject, ignore_ties: bool) -> tuple[WeightSpec, list[str]]:
    """The inferred spec, and what inference warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            spec = infer_spec(subject.fn, subject.params, *subject.inputs, ignore_ties=ignore_ties)
        except Exception as error:  # the function is the user's: anything may go wrong in it
            raise InspectError(f"{subject.title}: {type(error).__name__}: {str(error).strip()}") from error
    return spec, [str(warning.message) for warning in caught]


def _table(title: str, *columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def tables(found: Description) -> list[Table]:
    """Weights, permutations, and what a UNF layer over them is made of."""
    weights = _table("weights", "leaf", "shape", "axes", "terms", right=("terms",))
    for row in found.leaves:
        weights.add_row(row.path, str(row.shape), row.axes, f"{row.terms:,}")
    names = _table("permutations, and fixed axes (!)", "name", "size", "leaves", right=("size",))
    for row in found.names:
        names.add_row(row.name + "!" * row.fixed, f"{row.size:,}", ", ".join(row.leaves))
    layer = _table("UNF layer", "terms", "pooled arrays", f"parameters, {C_IN} -> {C_OUT}", right=())
    layer.add_row(f"{found.layer.num_terms:,}", f"{found.layer.views:,}", f"{found.layer.parameters(C_IN, C_OUT):,}")
    return [weights, names, layer]


def comparison(own: WeightSpec, inferred: WeightSpec, params: Any) -> str:
    """In a sentence, whether a task's own spec and the inferred one are the same."""
    compared = without_single_indices(own, params), without_single_indices(inferred, params)
    if same_up_to_names(*compared):
        return "The inferred spec is the same, but for names."
    if same_group(*compared):
        verdict = (
            "The inferred spec describes the same permutations, but names or divides axes that none of them moves otherwise:"
        )
    else:
        verdict = "The inferred spec describes OTHER permutations; one of the two is wrong, or inference has found too few:"
    return f"{verdict}\n\n{inferred}"


def inspect(subject: Subject, ignore_ties: bool, console: Console) -> None:
    """Infer the spec and print all about it."""
    inferred, messages = infer(subject, ignore_ties)
    console.print(subject.title, markup=False, highlight=False)
    own = subject.spec
    for table in tables(describe(inferred if own is None else own, subject.params)):
        console.print(table, markup=False)
    if own is not None:
        verdict = comparison(own, inferred, subject.params)
        console.print(verdict, markup=False, highlight=False, soft_wrap=True)
    for message in messages:
        console.print(f"warning: {message}", markup=False, highlight=False, soft_wrap=True)


def parse(argv: Sequence[str] | None, prog: str) -> tuple[argparse.Namespace, list[str]]:
    """The program's arguments, and those that are a task's."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog=prog,
        description=DESCRIPTION,
        epilog=EPILOG.replace("{prog}", prog).replace("{debug}", DEBUG_HELP),
        formatter_class=formatter,
        allow_abbrev=False,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    text = f"a task: {', '.join(task_names())}; or module:function or path/to/file.py:function, which makes one of your own. Its fields "
    source.add_argument("--task", metavar="NAME", help=text + "are options too, such as --task.hidden 64 64")
    source.add_argument("--module", metavar="FILE.py:FUNCTION", help="a function that returns (fn, params, *inputs)")
    parser.add_argument(
        "--ignore-ties", action="store_true", help="let argmax and top-k follow a permutation: true but for equal entries"
    )
    args, rest = parser.parse_known_args(argv)
    if rest and args.task is None:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return args, rest


def main(argv: Sequence[str] | None = None, console: Console | None = None, *, prog: str = "python -m lopt inspect") -> None:
    """The command; `prog` is what it is called by."""
    argv, debug = take_debug(argv)
    args, fields = parse(argv, prog)
    with reporting_errors(prog, debug=debug):
        subject = from_module(args.module) if args.task is None else from_task(args.task, fields, prog)
        inspect(subject, args.ignore_ties, Console() if console is None else console)
