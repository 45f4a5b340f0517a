"""Configs as JSON, and the files that hold them."""

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

from lopt.config.importing import FILE_MODULE, home_of, import_place
from lopt.config.names import name_of, path_of, registered, renew
from lopt.config.tree import ConfigError, differences, is_config, is_frozen, join, shown, validate

CONFIG_FILE = "config.json"
HOME = "class_directory"  # beside "class": where the module of somebody's own class lies


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file so that whoever looks, after a SIGKILL or a power cut too, finds all of the old or all of the new content.

    A kill can leave a hidden file `.NAME.PID.tmp` behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    file = temporary.open("wb")
    try:
        with file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the new name is on the disk only when the directory is
    finally:
        os.close(directory)


def _class_name(cls: type, path: str) -> str:
    if cls.__module__.startswith(FILE_MODULE) or cls.__module__ == "__main__" or "<locals>" in cls.__qualname__:
        raise ConfigError(
            f"{path or 'config'} is of the class {cls.__qualname__}, which another process cannot import: it is defined in a "
            "config file, a script or a function; move the class to an importable module and import it from there"
        )
    where = f"{cls.__module__}:{cls.__qualname__}"
    return name_of(where) or where


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


def _find_class(name: Any, path: str, trust: bool, home: Any = None) -> type:
    place = path_of(name) if isinstance(name, str) else None
    if place is None and not trust:
        raise ConfigError(
            f"{path or 'config'} is of the class {name!r}, which is none of lopt's: nothing is imported because a file says so. The "
            f"names it knows are {', '.join(sorted(registered()))}"
        )
    try:
        found = import_place(place or str(name), home if isinstance(home, str) else None)
    except (ConfigError, ImportError) as error:
        raise ConfigError(f"{path or 'config'} is of the class {name!r}, which cannot be imported: {error}") from error
    if not isinstance(found, type) or not is_frozen(found):
        raise ConfigError(f"{path or 'config'} is of the class {name!r}, which is not a frozen dataclass")
    return found


def _decode(value: Any, path: str, trust: bool) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item, f"{path}[{index}]", trust) for index, item in enumerate(value))
    if not isinstance(value, dict):
        return value
    if value.keys() == {"float"} and value["float"] in ("inf", "-inf", "nan"):
        return float(value["float"])
    if "class" not in value:
        raise ConfigError(f"{path or 'config'} is an object without a 'class'")
    cls = _find_class(value["class"], path, trust, value.get(HOME))
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
    decoded = {name: _decode(value[name], join(path, name), trust) for name in fields if name in value}
    try:
        config = cls(**decoded)
    except ValueError as error:  # raised by a class that checks its values
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
      trust: import classes that are not registered, by their paths; only for files of one's own, as importing runs code.

    Raises:
      ConfigError: naming the unknown, missing or wrongly typed field, or the class that is missing or not a frozen dataclass.
    """
    config = _decode(renew(data), "", trust)
    validate(config)
    return config


def save(config: Any, path: str | Path) -> None:
    """Write a config as JSON, atomically.

    Raises:
      ConfigError: as `to_dict`.
      OSError: if the file cannot be written.
    """
    write_atomically(Path(path), (json.dumps(to_dict(config), indent=2, allow_nan=False) + "\n").encode())


def load_run(run_dir: str | Path) -> Any:
    """The config of a run directory, from its config.json.

    Raises:
      ConfigError: naming the file that is missing or corrupt, and the field at fault.
    """
    path = Path(run_dir) / CONFIG_FILE
    try:
        return from_dict(json.loads(path.read_bytes()), trust=True)
    except FileNotFoundError as error:
        raise ConfigError(f"no {path}: {run_dir} is not the directory of a run") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error


def check_run_dir(run_dir: str | Path, config: Any) -> bool:
    """Whether a run directory holds a run, which must be of this config but for operational fields; nothing is written.

    Args:
      run_dir: the run directory, which need not exist.
      config: of the run that is about to start or resume.

    Raises:
      ConfigError: naming the fields that differ and may not (`lopt.config.operational`), or as `load_run`.
    """
    if not (Path(run_dir) / CONFIG_FILE).exists():
        return False
    refused = differences(load_run(run_dir), config, operational=False)
    if refused:
        listing = "; ".join(f"{field} is {old!r} there, not {new!r}" for field, old, new in refused)
        raise ConfigError(f"{run_dir} holds a run of another config: {listing}; use another run directory or the same values")
    return True


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
    if begun and check_run_dir(run_dir, config) and not differences(load_run(run_dir), config):
        return
    path = Path(run_dir) / CONFIG_FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(config, path)
    except OSError as error:
        raise ConfigError(f"cannot write the run directory {run_dir}: {error}") from error
