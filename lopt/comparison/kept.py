"""Races that are kept in files, so that they are run again only when what is raced has changed."""

import io
import json
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lopt.config import completed, write_atomically
from lopt.evaluation.summary import Curve

_FORMAT = 1
# RuntimeError and NotImplementedError: flipped bits that zipfile takes for encryption or another compression.
_DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def keep_race(path: Path, curve: Curve, identity: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write a race atomically.

    Args:
      path: the file; its directory is made if need be.
      curve: what was raced.
      identity: all that the race depends on, as JSON values.
      about: what else is to be known of it, as JSON values.
    """
    arrays = {
        "losses": curve.losses,
        "at": curve.at,
        **{f"test/{name}": values for name, values in curve.test.items()},
        **{f"held_out/{name}": values for name, values in curve.held_out.items()},
    }
    text = {"format": _FORMAT, "identity": identity, "about": about, "name": curve.name, "reference": curve.reference}
    text |= {"seconds_per_step": curve.seconds_per_step}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, text=np.array(json.dumps(text)), **arrays)  # pyright: ignore[reportArgumentType]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())


def kept_race(path: Path, identity: Mapping[str, Any], data: str | None = None) -> tuple[Curve, dict[str, Any]] | None:
    """A race that is kept, and what was written about it; None if there is none of this identity.

    A damaged file is warned of and counts as none.

    Args:
      path: the file.
      identity: all that the race depends on but the data, as JSON values.
      data: digest of the data; None: it is not known, as they are not loaded. A race on data of another digest counts as none.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        text = json.loads(str(arrays.pop("text")))
        if text["format"] != _FORMAT or completed(text["identity"]) != json.loads(json.dumps(identity)):
            return None
        if data is not None and text["about"].get("data", data) != data:
            return None

        def group(prefix: str) -> dict[str, np.ndarray]:
            return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}

        curve = Curve(
            text["name"],
            arrays["losses"],
            group("test/"),
            text["seconds_per_step"],
            text["reference"],
            arrays["at"],
            group("held_out/"),
        )
        return curve, text["about"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except _DAMAGED as error:
        warnings.warn(f"the kept race {path} is damaged and run again: {error}", stacklevel=2)
        return None


def race_once(
    path: Path, identity: Mapping[str, Any], run: Callable[[], tuple[Curve, Mapping[str, Any]]], data: str | None = None
) -> tuple[Curve, Mapping[str, Any]]:
    """What is kept of a race with this identity, on these data where they are known, or a new one, which is then kept."""
    found = kept_race(path, identity, data)
    if found is None:
        found = run()
        keep_race(path, found[0], identity, found[1])
    return found
