"""Any zoo as arrays: a folder of safetensors or NPZ files with a table of labels.

`labels.csv` has a line a model: `file`, relative to the folder, the label's column, and whatever else is known. Where a file holds
several models, leaves have a first axis of models and a column `index` says which is meant. Leaves are told by their names in the
file, such as `encoder/ir/kernel`. Whole numbers that the spec does not name, such as counters of batches, are passed over.
"""

import csv
import dataclasses
import math
import zipfile
import zlib
from pathlib import Path

import numpy as np

from lopt.symmetry.notation import SpecError
from lopt.symmetry.spec import WeightSpec
from lopt.weight_space.store import LABELS_FILE, SPEC_FILE, ZooError, file_within, read_manifest, read_spec

# RuntimeError and NotImplementedError: flipped bits that zipfile takes for encryption or another compression.
_DAMAGED = (OSError, ValueError, KeyError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error)
_SUFFIXES = (".safetensors", ".npz")


@dataclasses.dataclass(frozen=True)
class Zoo:
    """Models of one architecture and a label for each.

    Attributes:
      names: of the models, for messages and tables.
      weights: leaf path -> [N, *shape] float32.
      labels: [N] float32.
      spec: the symmetry of the models.
    """

    names: tuple[str, ...]
    weights: dict[str, np.ndarray]
    labels: np.ndarray
    spec: WeightSpec


def read_zoo(folder: str | Path, label: str, spec: WeightSpec | None = None) -> Zoo:
    """Read all models that a table names, and check them.

    Args:
      folder: with `labels.csv`, the models' files and, unless `spec` is given, `spec.json`.
      label: column of the table that is to be predicted.
      spec: the symmetry of the models, such as `infer_spec(model, params, inputs)` gives.

    Raises:
      ZooError: naming the line, file, leaf or column: a label or a model that is missing, a model without a label, shapes that differ,
        values that are not finite, weights that the spec does not describe.
    """
    folder = Path(folder)
    lines = _read_table(folder / LABELS_FILE, label)
    read_manifest(folder)  # of a zoo that has one, each file is what was written
    if spec is None:
        spec = _spec_of(folder)
    weights: dict[str, list[np.ndarray]] = {}
    names, labels, first = [], [], ""
    files: dict[str, dict[str, np.ndarray]] = {}
    seen: dict[str, set[int]] = {}
    for number, line in enumerate(lines, start=2):
        where = f"{folder / LABELS_FILE}, line {number}"
        file, index = line["file"], _index(line, where)
        if file not in files:
            arrays = _read_arrays(file_within(folder, file, where), where)
            files[file] = {path: array for path, array in arrays.items() if path in spec.paths or _is_float(array)}
        name = file if index is None else f"{file}[{index}]"
        position = -1 if index is None else index
        if position in seen.setdefault(file, set()):
            raise ZooError(f"{where} names {name} a second time")
        seen[file].add(position)
        model = files[file] if index is None else _pick(files[file], index, name)
        first = first or name
        _check_model(model, name, first, {path: arrays[0].shape for path, arrays in weights.items()})
        for path, array in model.items():
            weights.setdefault(path, []).append(array.astype(np.float32))
        names.append(name)
        labels.append(_label(line, label, where))
    _check_all_labelled(folder, files, seen)
    stacked = {path: np.stack(arrays) for path, arrays in weights.items()}
    try:
        spec.sizes({path: arrays[0] for path, arrays in weights.items()})
    except SpecError as error:
        raise ZooError(f"the spec does not describe the models of {folder}: {error}") from error
    return Zoo(tuple(names), {path: stacked[path] for path in spec.paths}, np.asarray(labels, np.float32), spec)


def _read_table(path: Path, label: str) -> list[dict[str, str]]:
    if not path.is_file():
        raise ZooError(
            f"{path} is missing: a table with a column 'file' and one for what is to be predicted, a line for each model"
        )
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets put a byte-order mark first
            reader = csv.DictReader(file)
            columns, lines = reader.fieldnames or (), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ZooError(f"{path} cannot be read: {error}; a table is text in UTF-8, with commas") from error
    for name in ("file", label):
        if name not in columns:
            raise ZooError(f"{path} has no column '{name}'; its columns are {', '.join(columns)}")
    if not lines:
        raise ZooError(f"{path} names no models")
    return lines


def _spec_of(folder: Path) -> WeightSpec:
    path = folder / SPEC_FILE
    if not path.is_file():
        raise ZooError(
            f"{path} is missing, so that the symmetry of the models is unknown: pass spec=infer_spec(model, params, inputs), or "
            "keep it there with lopt.weight_space.store.write_spec"
        )
    return read_spec(path)


def _index(line: dict[str, str], where: str) -> int | None:
    text = line.get("index") or ""
    if not text:
        return None
    if not text.isdecimal():
        raise ZooError(f"{where}: index is '{text}', not a whole number from 0")
    return int(text)


def _label(line: dict[str, str], label: str, where: str) -> float:
    text = line[label] or ""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ZooError(f"{where}: the label '{label}' of {line['file']} is {text!r}, which is not a finite number")
    return value


def _read_arrays(path: Path, where: str) -> dict[str, np.ndarray]:
    if path.suffix not in _SUFFIXES:
        raise ZooError(f"{where}: {path} is neither a .safetensors nor a .npz file")
    if not path.is_file():
        raise ZooError(f"{where}: there is no file {path}")
    if path.suffix == ".npz":
        try:
            with path.open("rb") as file:  # numpy leaves a file open that it cannot read
                content = np.load(file, allow_pickle=False)
                if not isinstance(content, np.lib.npyio.NpzFile):
                    raise ValueError("it holds one array, as numpy.save writes it; write it with numpy.savez")
                return {name: content[name] for name in sorted(content.files)}
        except _DAMAGED as error:
            raise ZooError(f"{path} cannot be read: {error}") from error
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError as error:
        raise ZooError(f"{path} needs the package safetensors: pip install safetensors, or keep the zoo as .npz files") from error
    try:
        return dict(sorted(load_file(path).items()))
    except (*_DAMAGED, SafetensorError) as error:
        raise ZooError(f"{path} cannot be read: {error}") from error


def _pick(arrays: dict[str, np.ndarray], index: int, name: str) -> dict[str, np.ndarray]:
    for path, array in arrays.items():
        if array.ndim == 0 or index >= len(array):
            raise ZooError(f"there is no model {name}: leaf '{path}' has shape {array.shape}, the first axis counts the models")
    return {path: array[index] for path, array in arrays.items()}


def _is_float(array: np.ndarray) -> bool:
    return np.issubdtype(array.dtype, np.floating) or array.dtype.name == "bfloat16"


def _check_model(model: dict[str, np.ndarray], name: str, first: str, shapes: dict[str, tuple[int, ...]]) -> None:
    if shapes and model.keys() != shapes.keys():
        paths = sorted(model.keys() ^ shapes.keys())
        raise ZooError(f"{name} does not have the same leaves as {first}: they differ in {', '.join(paths)}")
    for path, array in model.items():
        if shapes and array.shape != shapes[path]:
            raise ZooError(
                f"leaf '{path}' has shape {array.shape} in {name}, but {shapes[path]} in {first}: one zoo, one architecture"
            )
        if not _is_float(array):
            raise ZooError(f"leaf '{path}' of {name} holds {array.dtype}, not floating-point weights")
        if not np.isfinite(array.astype(np.float32)).all():
            raise ZooError(f"leaf '{path}' of {name} holds values that are not finite: take the model and its label out")


def _check_all_labelled(folder: Path, files: dict[str, dict[str, np.ndarray]], seen: dict[str, set[int]]) -> None:
    known = {(folder / file).resolve() for file in files}
    found = sorted(path for suffix in _SUFFIXES for path in folder.rglob(f"*{suffix}") if path.resolve() not in known)
    if found:
        raise ZooError(f"{len(found)} files have no line in {folder / LABELS_FILE}, the first is {found[0].relative_to(folder)}")
    for file, arrays in files.items():
        models = len(next(iter(arrays.values()))) if seen[file] != {-1} else 0
        missing = sorted(set(range(models)) - seen[file])
        if missing:
            raise ZooError(f"{file} holds {models} models, of which {missing[0]} has no line in {folder / LABELS_FILE}")
