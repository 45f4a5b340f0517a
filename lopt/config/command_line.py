"""Config files, and the command line that overrides their fields."""

import argparse
import ast
import dataclasses
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from lopt.config.choices import Readers, describe_choices, exchange
from lopt.config.importing import import_file
from lopt.config.tree import ConfigError, is_config, validate

CHOICES = """\
Parts that are a choice are exchanged by name, such as --estimator nres. The new part has its own defaults; where both have a field, a
value that the file has given to it is kept:"""


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
      path: a Python file; it is imported by path, and may import the modules beside it.

    Raises:
      ConfigError: the file is missing (the message lists those beside it) or cannot be imported, has no `config`, or its
        `config` is not made of frozen dataclasses with values of the annotated types.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no config file {path}; those in {path.parent} are\n{_available(path.parent)}")
    if path.suffix != ".py":
        raise ConfigError(f"{path} is not a Python file: its name must end in .py")
    location = str(path.resolve())
    try:
        module = import_file(path, again=True)
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == location]
        lines += [error.lineno] if isinstance(error, SyntaxError) and error.filename == location else []
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
    readers: Readers | None = None,
) -> tuple[Any, Path, Any]:
    """Read `--config FILE --run-dir RUN` and overrides of any field, such as `--seed 1 --estimator.sigma 0.02`.

    A part that is a choice is exchanged by its name (`lopt.config.choices`): `--estimator nres --estimator.sigma 0.02`. Anything wrong
    is reported by name on stderr, with exit status 2; `--help` lists the config files, the choices and the fields.

    Args:
      argv: the arguments after the program's name; None for those of this process.
      prog: the program's name, for help.
      description: what the program does, for help.
      config_dir: where the config files are, to list them.
      help_config: the config file whose fields `--help` shows when no `--config` is given.
      extra: a dataclass of further arguments that are no part of the experiment, with their defaults.
      readers: what the name of a part may be besides a registered one, by the base class of the part.

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
    if file is None and not help_is_wanted(argv):
        first.error(f"--config FILE is required.\n{listing}")
    shown = help_config if file is None else file
    try:
        config = None if shown is None else load_file(shown)
        if config is not None:
            config, argv = exchange(config, argv, readers=readers)
        arguments = _arguments(None if config is None else opened(config), extra)
    except ConfigError as error:
        first.error(str(error))
    note = "See the fields of one: --config FILE --help"
    if shown is not None:
        note = f"Below are the fields of {shown} with its values as defaults; each can be overridden."
        if help_is_wanted(argv):
            note = f"{CHOICES}\n{chr(10).join(describe_choices(config))}\n\n{note}"

    import tyro  # takes 0.2 s

    # A field whose class is a choice between several keeps the class that it has, rather than becoming a subcommand.
    parsed: Any = tyro.cli(
        arguments, prog=prog, description=f"{description}\n\n{listing}\n\n{note}", args=argv, config=(tyro.conf.AvoidSubcommands,)
    )
    return closed(parsed.experiment), parsed.run_dir, getattr(parsed, "extra", None)


def parse_part(
    config: Any, argv: Sequence[str], name: str, *, prog: str, description: str, readers: Readers | None = None
) -> Any:
    """A config with overrides of its fields as `--NAME.field VALUE`, and nothing else.

    Args:
      config: with the defaults.
      argv: the overrides.
      name: of the config on the command line, such as "task".
      prog: the program's name, for help.
      description: what the program does, for help.
      readers: as of `parse_experiment`.

    Raises:
      ConfigError: if a part of it is exchanged for one that there is not.
    """
    import tyro

    config, argv = exchange(config, argv, prefix=name, readers=readers)
    given = opened(config)
    arguments = dataclasses.make_dataclass("Arguments", [(name, type(given), dataclasses.field(default=given))])
    parsed: Any = tyro.cli(arguments, prog=prog, description=description, args=argv, config=(tyro.conf.AvoidSubcommands,))
    return closed(getattr(parsed, name))


def help_is_wanted(argv: Sequence[str]) -> bool:
    """Whether `-h` or `--help` is among the arguments."""
    return not {"-h", "--help"}.isdisjoint(argv)


def opened(config: Any) -> Any:
    """A tree in which every part that takes its options from elsewhere, by a method `opened`, stands with these as fields."""
    return _map(config, "opened")


def closed(config: Any) -> Any:
    """The inverse of `opened`, with the values that the fields have now."""
    return _map(config, "closed")


def _map(config: Any, method: str) -> Any:
    if not is_config(config):
        return config
    if hasattr(config, method):
        return getattr(config, method)()
    changed = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        mapped = tuple(_map(item, method) for item in value) if type(value) is tuple else _map(value, method)
        if field.init and (
            any(a is not b for a, b in zip(mapped, value, strict=True)) if type(value) is tuple else mapped is not value
        ):
            changed[field.name] = mapped
    return dataclasses.replace(config, **changed) if changed else config


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
