"""Parts of a config that are a choice, exchanged by name on a command line: `--estimator nres`, `--optimizer.network deep_sets`.

Where a field's type is the base of several config classes, or a union of them, its path followed by a name puts the class of that name
there, with its defaults; fields that both classes have keep a value that was not the old class's default. A config that stands for
several parts in one word, and has them as its `parts`, is written out where one of them is named.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from lopt.config.importing import import_place, is_place
from lopt.config.names import name_of, registered
from lopt.config.tree import ConfigError, fits, is_config, is_frozen, join

Readers = Mapping[type, Callable[[str], Any]]  # base class -> what makes a config of it from a name, with nothing of the old part


def choices(hint: Any) -> dict[str, type]:
    """The registered config classes that a field of this type takes: name -> class."""
    bases = tuple(_classes(hint))
    return {name: cls for name, cls in _registered_classes().items() if issubclass(cls, bases)} if bases else {}


@cache
def _registered_classes() -> Mapping[str, type]:
    return {name: import_place(place) for name, place in sorted(registered().items())}


def _required(cls: type) -> list[str]:
    """The fields without a default."""
    return [f.name for f in dataclasses.fields(cls) if f.init and f.default is f.default_factory is dataclasses.MISSING]


def exchange(config: Any, argv: Sequence[str], *, prefix: str = "", readers: Readers | None = None) -> tuple[Any, list[str]]:
    """Put the parts in place that arguments name.

    Args:
      config: a tree of frozen dataclasses.
      argv: arguments; `--PATH NAME` or `--PATH=NAME` of a part is taken out, outer parts before those in them.
      prefix: path of `config` itself on the command line, such as "task".
      readers: by the base of a field's type, what makes its part of a name, in place of the above.

    Returns:
      The config, and the other arguments.

    Raises:
      ConfigError: naming the path, and what it may be, where there is no such name; or what is wrong with the new part.
    """
    given, rest, index = [], [], 0
    while index < len(argv):
        option, equals, value = argv[index].partition("=")
        index += 1
        path = option[2:].replace("-", "_").split(".") if option.startswith("--") else []
        path = path[len(prefix.split(".")) :] if prefix and ".".join(path).startswith(f"{prefix}.") else [] if prefix else path
        if not path:
            rest.append(argv[index - 1])
            continue
        values = [value] if equals else []
        if not equals and index < len(argv) and not argv[index].startswith("--"):
            values = [argv[index]]
        given.append((path, option, values, len(rest)))
        rest.append(argv[index - 1])
    taken = set()
    for path, option, values, place in sorted(given, key=lambda one: len(one[0])):
        config = _in_parts(config, path)
        hint = _hint_at(config, path)
        if hint is None or not any(_classes(hint)):
            continue
        if not values:
            raise ConfigError(f"{option} needs a name, {_listing(hint, readers)}")
        config = _replaced(config, path, _named(values[0], hint, _at(config, path), option, readers))
        taken |= {place} if "=" in rest[place] else {place, place + 1}
    return config, [argument for place, argument in enumerate(rest) if place not in taken]


def describe_choices(config: Any, prefix: str = "") -> list[str]:
    """One line for each part of a config that is a choice: its option, the name of what is there, and the other names."""
    lines = []
    for path, hint, value in _parts(config, prefix):
        names = [name for name, cls in choices(hint).items() if not set(_required(cls)) - _kept(value, cls).keys()]
        if len(names) > 1:
            now = name_of(f"{type(value).__module__}:{type(value).__qualname__}")
            lines.append(f"  --{path.replace('_', '-')}  {' | '.join(names)}" + (f"  (now {now})" if now else ""))
    return lines


def _named(text: str, hint: Any, old: Any, option: str, readers: Readers | None) -> Any:
    if text.lower() == "none" and type(None) in _arguments(hint):
        return None
    bases = tuple(_classes(hint))
    for base, read in (readers or {}).items():
        if any(issubclass(base, one) for one in bases):
            try:
                return read(text)
            except ConfigError as error:
                raise ConfigError(f"{option}: {error}") from error
    cls = choices(hint).get(text)
    if cls is not None:
        return _with_fields_of(old, cls, option)
    if is_place(text):
        cls = import_place(text)
        if not isinstance(cls, type) or not is_frozen(cls) or not issubclass(cls, bases):
            wanted = " or ".join(base.__name__ for base in bases)
            raise ConfigError(f"{option} {text}: it must be a frozen dataclass that derives from {wanted}")
        return _with_fields_of(old, cls, option)
    near = difflib.get_close_matches(text, choices(hint), n=1)
    raise ConfigError(f"{option}: there is no '{text}'{f', did you mean {near[0]}?' if near else ''}; {_listing(hint, readers)}")


def _listing(hint: Any, readers: Readers | None) -> str:
    bases = tuple(_classes(hint))
    own = "module:function or file.py:function" if any(base in (readers or {}) for base in bases) else "module:Class"
    return f"one of {', '.join(choices(hint))}, or {own} of your own"


def _with_fields_of(old: Any, cls: type, option: str) -> Any:
    """The class with its defaults, and what of the old config's fields it has too and was not the old one's default."""
    kept = _kept(old, cls)
    missing = [name for name in _required(cls) if name not in kept]
    if missing:
        raise ConfigError(f"{option}: {cls.__name__} has no default for {', '.join(missing)}; write it into a config file")
    try:
        return cls(**kept)
    except ValueError as error:  # raised by a class that checks its values
        raise ConfigError(f"{option}: {error}") from error


def _kept(old: Any, cls: type) -> dict[str, Any]:
    """What of an old config's values a new one of this class takes."""
    hints = typing.get_type_hints(cls)
    fields = {field.name for field in dataclasses.fields(cls) if field.init}
    if is_config(old) and isinstance(getattr(old, "parts", None), cls):
        old = old.parts
    return {
        field.name: value
        for field in (dataclasses.fields(old) if is_config(old) else ())
        if field.name in fields and not _is_default(field, value := getattr(old, field.name)) and fits(value, hints[field.name])
    }


def _in_parts(config: Any, path: Sequence[str]) -> Any:
    """The config, what stands on the path written out where it has a field of the path only so."""
    if not is_config(config) or not path:
        return config
    names = {field.name for field in dataclasses.fields(config)}
    if path[0] not in names:
        parts: Any = getattr(config, "parts", None)
        return _in_parts(parts, path) if is_config(parts) and path[0] in {f.name for f in dataclasses.fields(parts)} else config
    inner = getattr(config, path[0])
    written = _in_parts(inner, path[1:])
    return config if written is inner else dataclasses.replace(config, **{path[0]: written})


def _is_default(field: dataclasses.Field, value: Any) -> bool:
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return type(value) is type(default) and value == default


def _arguments(hint: Any) -> tuple[Any, ...]:
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return _arguments(typing.get_args(hint)[0])
    return typing.get_args(hint) if origin in (typing.Union, types.UnionType) else (hint,)


def _classes(hint: Any) -> Iterator[type]:
    """The config classes of a type."""
    yield from (part for part in _arguments(hint) if isinstance(part, type) and is_frozen(part))


def _parts(config: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Path, type and value of every field that holds a config, or might."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, where = getattr(config, field.name), join(path, field.name)
        if any(_classes(hints[field.name])):
            yield where, hints[field.name], value
        if is_config(value):
            own = list(_parts(value, where))
            yield from own
            written: Any = getattr(value, "parts", None)  # which may be the config itself
            if is_config(written) and type(written) is not type(value):
                named = {path for path, *_ in own}
                yield from (part for part in _parts(written, where) if part[0] not in named)


def _hint_at(config: Any, path: Sequence[str]) -> Any:
    """The type of the field at a path; None where there is none."""
    for name in path[:-1]:
        config = getattr(config, name, None) if is_config(config) else None
    return typing.get_type_hints(type(config)).get(path[-1]) if is_config(config) else None


def _at(config: Any, path: Sequence[str]) -> Any:
    for name in path:
        config = getattr(config, name)
    return config


def _replaced(config: Any, path: Sequence[str], value: Any) -> Any:
    if not path:
        return value
    return dataclasses.replace(config, **{path[0]: _replaced(getattr(config, path[0]), path[1:], value)})
