"""A zoo on disk: models in shards, a line of labels for each, and a manifest that says which shards are whole.

    ZOO/models/00000.safetensors   weights of several models: leaf path -> [models, *shape]
    ZOO/labels.csv                 a line a model: file, index in it, and columns such as learning_rate, success
    ZOO/spec.json                  the symmetry of the models: leaf path -> axis names
    ZOO/manifest.json              the shards that are there, their sha256, and the lines of the table

A shard is written before the manifest names it, and every file is replaced as a whole. Whatever is cut off in between, a zoo holds
each model once: a shard that the manifest does not name is made again.
"""

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lopt.config import parse_json, write_atomically
from lopt.config.errors import LoptError
from lopt.symmetry.spec import WeightSpec

LABELS_FILE, SPEC_FILE, MANIFEST_FILE, MODELS_DIR = "labels.csv", "spec.json", "manifest.json", "models"
_FORMAT = "lopt-zoo-1"
_WHERE = ("file", "index")  # columns that say where a model is


class ZooError(LoptError, RuntimeError):
    """A zoo that cannot be written, read or used; the message names the file, the leaf or the column."""


class Shard(NamedTuple):
    """A shard that is whole.

    Attributes:
      file: relative to the zoo.
      sha256: of the file.
      rows: column -> value for each of its models, in order.
    """

    file: str
    sha256: str
    rows: tuple[dict[str, float], ...]


def shard_file(number: int) -> str:
    """Relative to the zoo."""
    return f"{MODELS_DIR}/{number:05}.safetensors"


def file_within(zoo: Path, name: str, where: str) -> Path:
    """The file of a zoo that a table or a manifest names.

    Raises:
      ZooError: if the name leads out of the zoo: whoever made it says what is read, but not from elsewhere on this machine.
    """
    file = zoo / name
    if not isinstance(name, str) or "\0" in name or not file.resolve().is_relative_to(zoo.resolve()):
        raise ZooError(f"{where} names the file {name!r}, which is not in {zoo}: a zoo's files lie in its folder")
    return file


def read_manifest(zoo: Path) -> dict[str, Shard]:
    """File -> shard, in the order they were written; none of a zoo that is new.

    Raises:
      ZooError: if the manifest cannot be read, or a shard that it names is missing or not the one that was written.
    """
    path = zoo / MANIFEST_FILE
    if not path.exists():
        return {}
    try:
        content = parse_json(path.read_bytes())
        if content["format"] != _FORMAT:
            raise ZooError(f"{path} has the format '{content['format']}'; this version of lopt reads '{_FORMAT}'")
        shards = {s["file"]: Shard(s["file"], s["sha256"], tuple(s["rows"])) for s in content["shards"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ZooError(f"{path} is not the manifest of a zoo: {error}") from error
    for shard in shards.values():
        file = file_within(zoo, shard.file, str(path))
        if not file.is_file():
            raise ZooError(f"{file} is missing; {path} lists it. Take its entry out to have it made again")
        if hashlib.sha256(file.read_bytes()).hexdigest() != shard.sha256:
            raise ZooError(
                f"{file} is not what was written: its sha256 is not that in {path}. Delete both entries to make it again"
            )
    return shards


def write_shard(
    zoo: Path, shards: Mapping[str, Shard], number: int, weights: Mapping[str, np.ndarray], rows: Sequence[Mapping[str, float]]
) -> dict[str, Shard]:
    """Add a shard to a zoo.

    Args:
      zoo: its directory.
      shards: those that are there.
      number: of the shard.
      weights: leaf path -> [models, *shape].
      rows: a model's columns each.

    Returns:
      The shards that are there now.

    Raises:
      ZooError: if it cannot be written; what was there is intact.
    """
    from safetensors.numpy import save

    file = shard_file(number)
    data = save({path: np.ascontiguousarray(array) for path, array in weights.items()})
    shard = Shard(file, hashlib.sha256(data).hexdigest(), tuple(dict(row) for row in rows))
    shards = {**shards, file: shard}
    manifest = {"format": _FORMAT, "models": sum(len(s.rows) for s in shards.values())}
    manifest |= {"shards": [s._asdict() for s in shards.values()]}
    try:
        (zoo / MODELS_DIR).mkdir(parents=True, exist_ok=True)
        write_atomically(zoo / file, data)
        write_atomically(zoo / MANIFEST_FILE, (json.dumps(manifest, indent=1) + "\n").encode())
        write_atomically(zoo / LABELS_FILE, _labels(shards).encode())
    except OSError as error:
        raise ZooError(f"cannot write shard {file} of {zoo}: {error}; the shards before it are intact") from error
    return shards


def _labels(shards: Mapping[str, Shard]) -> str:
    columns = list(dict.fromkeys(name for shard in shards.values() for row in shard.rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, [*_WHERE, *columns], lineterminator="\n")
    writer.writeheader()
    for shard in sorted(shards.values()):
        writer.writerows({"file": shard.file, "index": index} | row for index, row in enumerate(shard.rows))
    return text.getvalue()


def write_spec(zoo: str | Path, spec: WeightSpec) -> None:
    """Keep the symmetry of a zoo's models beside them."""
    zoo = Path(zoo)
    zoo.mkdir(parents=True, exist_ok=True)
    content = {"axes": {path: spec.notation(path) for path in spec.paths}, "sizes": dict(spec.known_sizes)}
    write_atomically(zoo / SPEC_FILE, (json.dumps(content, indent=1) + "\n").encode())


def read_spec(path: str | Path) -> WeightSpec:
    """A spec from JSON: {"axes": {leaf path: axis names}}, with "sizes" of names where weights do not tell them.

    Raises:
      ZooError: naming the file, and the leaf that cannot be read.
    """
    try:
        content: Any = parse_json(Path(path).read_bytes())
        return WeightSpec.parse(content["axes"], **content.get("sizes", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        example = '{"axes": {"dense/kernel": "inputs! hidden", "dense/bias": "hidden"}}'
        raise ZooError(f"{path} is not a spec such as {example}: {error}") from error
