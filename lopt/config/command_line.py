"""Config files, and the command line that overrides their fields."""

import argparse
import ast
import dataclasses
import hashlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from lopt.config.serialize import FILE_MODULE
from lopt.config.tree import ConfigError, validate


def _available(directory: Path) -> str:
    """One line for each config file of a directory: its path and the first line of its docstring."""
    lines = []
    for file in sorted(directory.glob("[!_]*.py")):
        try:
            summary = (ast.get_docstring(ast.parse(file.read_bytes())) or "").partition("\n")[0]
        except SyntaxError as error:
            summary = f"(line {error.lineno}: {error.msg})"
        lines.append((os.path.relpath(file), summary))
    width = max((len(path) for path, _ in lines), default=0)
    return "\n".join(f"  {path:<{width}}  {summary}".rstrip() for path, summary in lines) or f"  (none in {directory})"


def load_file(path: str | Path) -> Any:
    """Import a config file and return its `config`.

    Args:
      path: a Python file; it is imported by path, so its directory need not be importable.

    Raises:
      ConfigError: the file is missing (the message lists those beside it) or cannot be imported, has no `config`, or its
        `config` is not made of frozen dataclasses with values of the annotated types.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no config file {path}; those in {path.parent} are\n{_available(path.parent)}")
    location = path.resolve()
    name = f"{FILE_MODULE}{path.stem}_{hashlib.sha256(str(location).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, location)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up the annotations of their fields there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(location)]
        lines += [error.lineno] if isinstance(error, SyntaxError) and error.filename == str(location) else []
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        raise ConfigError(f"{where}: {type(error).__name__}: {error}") from error
    if not hasattr(module, "config"):
        raise ConfigError(f"{path} defines no `config`; end it with `config = SomeConfig(...)`")
    try:
        validate(module.config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return module.config


def parse_experiment(
    argv: Sequence[str] | None,
    *,
    prog: str,
    description: str,
    config_dir: str | Path,
    help_config: str | Path | None = None,
    extra: Any = None,
) -> tuple[Any, Path, Any]:
    """Read `--config FILE --run-dir RUN` and overrides of any field, such as `--seed 1 --estimator.sigma 0.02`.

    Anything wrong is reported by name on stderr, with exit status 2; `--help` lists the config files and the fields.

    Args:
      argv: the arguments after the program's name; None for those of this process.
      prog: the program's name, for help.
      description: what the program does, for help.
      config_dir: where the config files are, to list them.
      help_config: the config file whose fields `--help` shows when no `--config` is given.
      extra: a dataclass of further arguments that are no part of the experiment, with their defaults.

    Returns:
      The file's config with the overrides in place, the run directory, and `extra` with its overrides.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    first = argparse.ArgumentParser(
        prog=prog, usage=f"{prog} --config FILE --run-dir RUN [overrides]", add_help=False, allow_abbrev=False
    )
    first.add_argument("--config")
    file = first.parse_known_args(argv)[0].config
    listing = f"Config files:\n{_available(Path(config_dir))}"
    if file is None and {"-h", "--help"}.isdisjoint(argv):
        first.error(f"--config FILE is required.\n{listing}")
    shown = help_config if file is None else file
    try:
        config = None if shown is None else load_file(shown)
        arguments = _arguments(config, extra)
    except ConfigError as error:
        first.error(str(error))
    note = "See the fields of one: --config FILE --help"
    if shown is not None:
        note = f"Below are the fields of {shown} with its values as defaults; each can be overridden."

    import tyro  # takes 0.2 s

    # A field whose class is a choice between several keeps the file's class, rather than becoming a subcommand.
    parsed: Any = tyro.cli(
        arguments, prog=prog, description=f"{description}\n\n{listing}\n\n{note}", args=argv, config=(tyro.conf.AvoidSubcommands,)
    )
    return parsed.experiment, parsed.run_dir, getattr(parsed, "extra", None)


def _arguments(config: Any, extra: Any = None) -> type:
    """A dataclass of the program's own arguments and, if there is a config, of its fields without a prefix."""
    import tyro

    arg = tyro.conf.arg
    fields: list[Any] = [
        ("config", Annotated[Path, arg(metavar="FILE", help="The experiment: a Python file that defines `config`.")]),
        ("run_dir", Annotated[Path, arg(metavar="RUN", help="Where the run is written; a run that is there already resumes.")]),
    ]
    own = {name for name, _ in fields}
    if extra is not None:
        own |= {field.name for field in dataclasses.fields(extra)}
        fields.append(("extra", Annotated[type(extra), arg(name="")], dataclasses.field(default=extra)))
    if config is not None:
        taken = sorted(own & {field.name for field in dataclasses.fields(config)})
        if taken:
            raise ConfigError(f"{type(config).__name__} has a field '{taken[0]}', which is the name of an argument: rename it")
        hint: Any = Annotated[type(config), arg(name="")]
        fields.append(("experiment", hint, dataclasses.field(default=config)))
    return dataclasses.make_dataclass("Arguments", fields, frozen=True)
