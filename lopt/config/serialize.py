"""Configs as JSON, and the files that hold them.

A config may name classes and functions that are not lopt's. Nothing is imported because a file says so: whoever reads it must trust it,
have imported these before, or have written that very file on this machine, of which a note is kept outside the run.
"""

import dataclasses
import hashlib
import json
import math
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from lopt.config.caches import UntrustedCacheError, cache_root, is_private, private_directory
from lopt.config.files import parse_json, write_atomically
from lopt.config.importing import FILE_MODULE, home_of, import_place
from lopt.config.names import name_of, path_of, registered, renew
from lopt.config.tree import ConfigError, differences, imported_functions, is_config, is_frozen, join, parts, shown, validate

CONFIG_FILE = "config.json"
HOME = "class_directory"  # beside "class": where the module of somebody's own class lies


class UntrustedConfigError(ConfigError):
    """A config that names classes or functions which are not lopt's, in a file that is not known to be one's own."""


def _place(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _class_name(cls: type, path: str) -> str:
    if cls.__module__.startswith(FILE_MODULE) or cls.__module__ == "__main__" or "<locals>" in cls.__qualname__:
        raise ConfigError(
            f"{path or 'config'} is of the class {cls.__qualname__}, which another process cannot import: it is defined in a "
            "config file, a script or a function; move the class to an importable module and import it from there"
        )
    return name_of(_place(cls)) or _place(cls)


def _encode(value: Any, path: str) -> Any:
    if is_config(value):
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        name = _class_name(type(value), path)
        home = home_of(type(value).__module__) if ":" in name else None
        about = {"class": name, **({} if home is None else {HOME: home})}
        return {**about, **{f: _encode(getattr(value, f), join(path, f)) for f in fields}}
    if type(value) is tuple:
        return [_encode(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if type(value) is float and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise ConfigError(
        f"{path} is {shown(value)} of type {type(value).__name__}; a config holds int, float, bool, str, None, tuples and dataclasses"
    )


def to_dict(config: Any) -> dict[str, Any]:
    """A config as what JSON can hold, from which `from_dict` makes an equal one.

    A dataclass becomes an object with its class as `"class"` (no field can have that name): a registered name (`lopt.config.names`),
    or `"module:Class"` for a class of somebody else, with the directory that its module lies in. A tuple becomes an array, and a float
    without a JSON number `{"float": "inf"}`.

    Raises:
      ConfigError: naming the field whose value JSON cannot hold, or whose class cannot be imported again.
    """
    validate(config)
    return _encode(config, "")


def _strangers(value: Any, path: str, known: Collection[str]) -> Iterator[tuple[str, Any]]:
    """The classes, and functions, that an encoded config would have imported although they are not lopt's: `(what it says, name)`."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _strangers(item, f"{path}[{index}]", known)
    if not isinstance(value, dict) or value.keys() == {"float"}:
        return
    name = value.get("class")
    place = path_of(name) if isinstance(name, str) else None
    if "class" in value and place is None and (not isinstance(name, str) or name not in known):
        yield f"{path or 'config'} is of the class", name
    for field in _imports(place) if place is not None else ():
        function = value.get(field)
        if function is not None and not (isinstance(function, str) and function in known):
            yield f"{join(path, field)} names", function
    for field, item in value.items():
        yield from _strangers(item, join(path, field), known)


def _imports(place: str) -> Collection[str]:
    """The fields by which a class of lopt's imports what they name."""
    try:
        return getattr(import_place(place), "IMPORTS", ())
    except (ConfigError, ImportError):  # whoever needs the class will say so
        return ()


def _known(config: Any) -> set[str]:
    """What a config names that is not lopt's: it has been imported already."""
    found = {_place(type(part)) for part in parts(config)}
    return found.union(*(imported_functions(part) for part in parts(config)))


def _refuse_strangers(data: Any, known: Collection[str] = ()) -> None:
    found = list(_strangers(data, "", known))
    if found:
        listing = ", ".join(repr(name) for _, name in found)
        raise UntrustedConfigError(
            f"{found[0][0]} {found[0][1]!r}, which is none of lopt's: nothing is imported because a file says so. If you know who "
            f"made it, trust=True, or --trust, imports {listing}. The names that need no trust are {', '.join(sorted(registered()))}"
        )


def _find_class(name: Any, path: str, home: Any = None) -> type:
    place = path_of(name) if isinstance(name, str) else None
    try:
        found = import_place(place or str(name), home if isinstance(home, str) else None)
    except (ConfigError, ImportError) as error:
        raise ConfigError(f"{path or 'config'} is of the class {name!r}, which cannot be imported: {error}") from error
    if not isinstance(found, type) or not is_frozen(found):
        raise ConfigError(f"{path or 'config'} is of the class {name!r}, which is not a frozen dataclass")
    return found


def _decode(value: Any, path: str) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item, f"{path}[{index}]") for index, item in enumerate(value))
    if not isinstance(value, dict):
        return value
    if value.keys() == {"float"} and value["float"] in ("inf", "-inf", "nan"):
        return float(value["float"])
    if "class" not in value:
        raise ConfigError(f"{path or 'config'} is an object without a 'class'")
    cls = _find_class(value["class"], path, value.get(HOME))
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    value = _without_gone(value, cls, path)
    unknown = sorted(value.keys() - fields.keys() - {"class", HOME})
    if unknown:
        names = ", ".join(join(path, name) for name in unknown)
        raise ConfigError(f"unknown field {names}: {cls.__name__} has the fields {', '.join(fields)}")
    # What a field means that a file does not have, since it was written before there was the field.
    value = {**{name: _encode(absent, name) for name, absent in getattr(cls, "ABSENT", {}).items()}, **value}
    required = [f.name for f in fields.values() if f.default is f.default_factory is dataclasses.MISSING]
    missing = [join(path, name) for name in required if name not in value]
    if missing:
        raise ConfigError(f"missing field {', '.join(missing)} of {cls.__name__}")
    decoded = {name: _decode(value[name], join(path, name)) for name in fields if name in value}
    try:
        config = cls(**decoded)
    except (TypeError, ValueError) as error:  # raised by a class that checks its values
        raise ConfigError(f"{path or 'config'}: {error}") from error
    validate(config, path)
    return config


def _without_gone(value: dict[str, Any], cls: type, path: str) -> dict[str, Any]:
    """An object without the fields that its class once had; of what they could say only one value is left, `cls.GONE`."""
    gone = {name: only for name, only in getattr(cls, "GONE", {}).items() if name in value}
    for name, only in gone.items():
        if value[name] != _encode(only, name):
            raise ConfigError(
                f"{join(path, name)} is {value[name]!r}: {cls.__name__} no longer has this field, only {only!r} is left"
            )
    return {name: found for name, found in value.items() if name not in gone}


def from_dict(data: dict[str, Any], *, trust: bool = False) -> Any:
    """The config that `to_dict` was given. Fields that were added to a class since, with a default, take the default.

    Args:
      data: what JSON held.
      trust: import classes and functions that are not lopt's, by their paths; only for files of one's own, as importing runs code.

    Raises:
      UntrustedConfigError: naming what would be imported.
      ConfigError: naming the unknown, missing or wrongly typed field, or the class that is missing or not a frozen dataclass.
    """
    return _decoded(data, trust)


def _decoded(data: Any, trust: bool, known: Collection[str] = ()) -> Any:
    try:
        data = renew(data)
        if not trust:
            _refuse_strangers(data, known)
        config = _decode(data, "")
    except RecursionError as error:
        raise ConfigError("it is nested too deeply to be a config") from error
    validate(config)
    return config


def completed(data: Any) -> Any:
    """What JSON with configs in it would say today: each as `to_dict` writes it, with all of today's fields.

    So that what was kept under an earlier config is found under the same one. A config that can no longer be read stays as it is.
    """
    if isinstance(data, list):
        return [completed(item) for item in data]
    if not isinstance(data, dict):
        return data
    if "class" in data:
        try:
            return to_dict(from_dict(data))
        except ConfigError:
            return renew(data)
    return {name: completed(value) for name, value in data.items()}


def save(config: Any, path: str | Path) -> None:
    """Write a config as JSON, atomically. What it names is trusted from then on where this user reads it on this machine.

    Raises:
      ConfigError: as `to_dict`.
      OSError: if the file cannot be written.
    """
    content = (json.dumps(to_dict(config), indent=2, allow_nan=False) + "\n").encode()
    write_atomically(Path(path), content)
    _remember(content)


def load_run(run_dir: str | Path, *, trust: bool = False) -> Any:
    """The config of a run directory, from its config.json.

    Args:
      run_dir: of the run.
      trust: import classes and functions that are not lopt's, whoever made the run. They are, too, where the user has begun this run, or
        gone on with it, on this machine.

    Raises:
      UntrustedConfigError: naming what would be imported.
      ConfigError: naming the file that is missing or corrupt, and the field at fault.
    """
    return _read_run(run_dir, lambda data, trusted: from_dict(data, trust=trust or trusted))


def load_part(run_dir: str | Path, field: str, *, trust: bool = False) -> Any:
    """As `load_run`, of one field of the config alone: what the others name need not be importable here."""

    def decode(data: Any, trusted: bool) -> Any:
        try:
            return from_dict(data[field], trust=trust or trusted)
        except UntrustedConfigError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"the config of the {field} cannot be read: {error}") from error

    return _read_run(run_dir, decode)


def _read_run(run_dir: str | Path, decode: Callable[[Any, bool], Any]) -> Any:
    path = Path(run_dir) / CONFIG_FILE
    try:
        content = path.read_bytes()
        return decode(parse_json(content), _is_own(content))
    except FileNotFoundError as error:
        raise ConfigError(f"no {path}: {run_dir} is not the directory of a run") from error
    except ConfigError as error:
        raise type(error)(f"{path}: {error}") from error
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not the config of a run: {error!r}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error


def _note(content: bytes) -> Path:
    return cache_root() / "runs" / hashlib.sha256(content).hexdigest()


def _is_own(content: bytes) -> bool:
    """Whether this user has begun a run with this very config.json on this machine."""
    note = _note(content)
    try:
        return note.exists() and private_directory(note.parent) is not None and is_private(note)
    except (UntrustedCacheError, OSError):
        return False


def _remember(content: bytes) -> None:
    """Keep a note that this user has written this config.json, if it names what is not lopt's; without one, trust is asked for later."""
    note = _note(content)
    if _is_own(content) or not list(_strangers(json.loads(content), "", ())):
        return
    try:
        private_directory(note.parent)
        note.touch(0o600)
    except (UntrustedCacheError, OSError) as error:
        warnings.warn(
            f"no note can be kept of this run ({error}): it names what is not lopt's, so whoever reads it will be asked to trust it",
            stacklevel=4,
        )


def check_run_dir(run_dir: str | Path, config: Any) -> bool:
    """Whether a run directory holds a run, which must be of this config but for operational fields.

    Nothing is written, and nothing imported.

    Args:
      run_dir: the run directory, which need not exist.
      config: of the run that is about to start or resume.

    Raises:
      ConfigError: naming the fields that differ and may not (`lopt.config.operational`), or as `load_run`.
    """
    if not (Path(run_dir) / CONFIG_FILE).exists():
        return False
    refused = differences(_load_beside(run_dir, config), config, operational=False)
    if refused:
        listing = "; ".join(f"{field} is {old!r} there, not {new!r}" for field, old, new in refused)
        raise ConfigError(f"{run_dir} holds a run of another config: {listing}; use another run directory or the same values")
    return True


def _load_beside(run_dir: str | Path, config: Any) -> Any:
    """The config of a run, in which whatever `config` is made of may be named: that much has been imported already."""
    return _read_run(run_dir, lambda data, trusted: _decoded(data, trusted, _known(config)))


def claim_run_dir(run_dir: str | Path, config: Any, *, begun: bool = True) -> None:
    """Make a run directory and write the config into it; one that is there already must hold a run of the same config.

    Args:
      run_dir: the run directory; created if missing.
      config: of the run that is about to start or resume. Of one that is there, operational fields may differ, and the new values
        are written.
      begun: False: a config that is there is only that of an attempt, which came to nothing; this one takes its place.

    Raises:
      ConfigError: naming the fields that differ and may not, or if the directory cannot be written, or as `to_dict` and `load_run`.
    """
    path = Path(run_dir) / CONFIG_FILE
    same = begun and check_run_dir(run_dir, config) and not differences(_load_beside(run_dir, config), config)
    try:
        if not same:
            path.parent.mkdir(parents=True, exist_ok=True)
            save(config, path)
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot write the run directory {run_dir}: {error}") from error
    if same:
        _remember(content)
