"""Trees of frozen dataclasses: are the values of the annotated types, and in which fields do two trees differ."""

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Any

from lopt.config.errors import LoptError


class ConfigError(LoptError, ValueError):
    """A config that cannot be read, written or built; the message names the file and the field."""


def join(path: str, name: str) -> str:
    """The path of a field of the config at `path`; "" is the path of the outermost."""
    return f"{path}.{name}" if path else name


def is_config(value: Any) -> bool:
    """Whether a value is an instance of a dataclass."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def is_frozen(cls: type) -> bool:
    """Whether a class is a frozen dataclass."""
    return dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen  # pyright: ignore[reportAttributeAccessIssue]


def parts(value: Any) -> Iterator[Any]:
    """All configs within a config, itself first."""
    if is_config(value):
        yield value
        for field in filter(lambda field: field.init, dataclasses.fields(value)):
            yield from parts(getattr(value, field.name))
    elif isinstance(value, tuple):
        for item in value:
            yield from parts(item)


def leaves(config: Any) -> dict[str, str]:
    """The path of every field, and its value as text; the class, where the value is a config."""
    return {path or "config": text for path, text in _leaves(config, "")}


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if is_config(value):
        yield path, type(value).__qualname__
        for field in filter(lambda field: field.init, dataclasses.fields(value)):
            yield from _leaves(getattr(value, field.name), join(path, field.name))
    elif isinstance(value, tuple) and any(map(is_config, value)):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}[{index}]")
    else:
        yield path, repr(value)


def imported_functions(config: Any) -> list[str]:
    """The `module:function`s that a config will import: the values of the fields that its class names in `IMPORTS`."""
    return [getattr(config, name) for name in getattr(type(config), "IMPORTS", ())]


def shown(value: Any) -> str:
    """A value for a message: its `repr`, with the kind and shape of arrays in place of their numbers."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"an array {value.dtype}{list(value.shape)}"
    if type(value) in (tuple, list):
        opening, closing = "()" if type(value) is tuple else "[]"
        return opening + ", ".join(map(shown, value)) + ("," * (type(value) is tuple and len(value) == 1)) + closing
    if type(value) is dict:
        return "{" + ", ".join(f"{key!r}: {shown(item)}" for key, item in value.items()) + "}"
    return repr(value)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the annotated type; annotations that are not understood fit everything."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, arg) for arg in args)
    if origin is typing.Literal:
        return any(type(value) is type(arg) and value == arg for arg in args)
    if origin is tuple and isinstance(value, tuple):
        hints = args[:1] * len(value) if args[1:] == (Ellipsis,) else args
        return len(value) == len(hints) and all(map(fits, value, hints))
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    if hint is None:
        return value is None
    cls = origin or hint
    return isinstance(value, cls) if isinstance(cls, type) and cls is not Any else True


def validate(config: Any, path: str = "") -> None:
    """Raise `ConfigError`, naming the field, unless every value has its field's annotated type.

    Args:
      config: a frozen dataclass, with nested ones.
      path: of `config` within an outer config, for the message.
    """
    cls = type(config)
    if not is_config(config) or not is_frozen(cls):
        raise ConfigError(f"{path or 'config'} is {shown(config)}: not an instance of a frozen dataclass")
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(config):
        if not field.init:
            continue  # derived, or kept in memory alone
        name, value, hint = join(path, field.name), getattr(config, field.name), hints[field.name]
        if not fits(value, hint):
            expected = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")
            raise ConfigError(f"{name} is {shown(value)}, which is not of type {expected}")
        for index, item in enumerate(value if isinstance(value, tuple) else ()):
            if is_config(item):
                validate(item, f"{name}[{index}]")
        if is_config(value):
            validate(value, name)


def operational(default: Any) -> Any:
    """A dataclass field that says how a run is carried out rather than what it is: it may change when the run is resumed.

    Example:
      >>> @dataclasses.dataclass(frozen=True)
      ... class Config:
      ...     seed: int = 0
      ...     save_every: int = operational(25)
      >>> differences(Config(), Config(seed=1, save_every=5), operational=False)
      [('seed', 0, 1)]
    """
    return dataclasses.field(default=default, metadata={_OPERATIONAL: True})


_OPERATIONAL = "operational"


def _differences(a: Any, b: Any, path: str, skipped: str | None) -> Iterator[tuple[str, Any, Any]]:
    if is_config(a) and type(a) is type(b):
        for field in dataclasses.fields(a):
            if field.init and skipped not in field.metadata:
                yield from _differences(getattr(a, field.name), getattr(b, field.name), join(path, field.name), skipped)
    elif isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b) and any(map(is_config, a)):
        for index, items in enumerate(zip(a, b, strict=True)):
            yield from _differences(*items, f"{path}[{index}]", skipped)
    elif a != b and not (a != a and b != b):  # NaN is the same setting as NaN
        yield path or "config", a, b


def differences(a: Any, b: Any, *, operational: bool = True) -> list[tuple[str, Any, Any]]:
    """The fields in which two configs differ, as `(path, value in a, value in b)`, such as `("estimator.sigma", 0.01, 0.02)`.

    Where the classes differ, the pair of configs is one difference. Without `operational`, fields of that kind are left out.
    """
    return list(_differences(a, b, "", None if operational else _OPERATIONAL))
