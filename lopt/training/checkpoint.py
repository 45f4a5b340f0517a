"""Checkpoints from which a run goes on bit for bit, and from which its theta can be read without knowing how it was trained.

A checkpoint is one file, RUN/checkpoints/STEP.safetensors, in the safetensors format (an 8-byte length, a JSON header, the bytes
of the arrays): any safetensors library opens it, nothing in it is executed. The header's metadata begin with a sha256 over the
whole file, taken with the digest's own 64 characters as zeros, so that a change of any bit is found.

Why not Orbax, measured with version 0.12: a bit flipped in an array's data file is restored without an error; old steps are
deleted file by file, so that a kill leaves a directory that looks like a checkpoint; without a template nothing is restored on
another number of devices; a save takes 150 ms. One file that is replaced in one system call has none of this.
"""

import dataclasses
import hashlib
import json
import re
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lopt.config import write_atomically
from lopt.config.errors import LoptError
from lopt.config.files import make_directory
from lopt.symmetry.spec import PyTree, named_leaves

CHECKPOINTS_DIR = "checkpoints"
BEST_DIR = "best"  # of a run directory: holds the checkpoint that is best by the held-out evaluation
THETA_FILE = "theta.safetensors"  # of an optimizer's folder: theta alone
_FORMAT = "lopt-checkpoint-1"
_FILE = re.compile(r"(\d{8,})\.safetensors")
_NO_DIGEST = "0" * 64
_DIGEST = re.compile(rb'.{8}\{"__metadata__": \{"sha256": "([0-9a-f]{64})"', re.DOTALL)
_CODES = {  # dtype -> its name in the format
    **{f"{kind}{bits}": f"{code}{bits}" for kind, code in (("int", "I"), ("uint", "U"), ("float", "F")) for bits in (16, 32, 64)},
    **{"bool": "BOOL", "int8": "I8", "uint8": "U8", "bfloat16": "BF16", "complex64": "C64"},
    **{"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"},
}
_DTYPES = {code: name for name, code in _CODES.items()}


class CheckpointError(LoptError, RuntimeError):
    """A checkpoint that cannot be written, read or used; the message names the file or the leaf."""


@dataclasses.dataclass(frozen=True)
class _Content:
    path: Path
    step: int
    arrays: dict[str, np.ndarray]  # leaf path -> values; of a typed key, its data
    keys: dict[str, str]  # leaf path -> implementation, for the leaves that are typed keys
    theta: Any  # the containers of theta as JSON, with the path of a leaf in each leaf's place

    def value(self, name: str) -> np.ndarray | jax.Array:
        array = self.arrays[name]
        return jax.random.wrap_key_data(jnp.asarray(array), impl=self.keys[name]) if name in self.keys else array


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _encode_containers(tree: PyTree, where: str) -> Any:
    if tree is None or isinstance(tree, str):
        return tree
    if type(tree) is dict and all(isinstance(key, str) for key in tree):
        return {key: _encode_containers(child, f"{where}/{key}") for key, child in tree.items()}
    if type(tree) in (list, tuple):
        return [type(tree).__name__, *(_encode_containers(child, f"{where}/{i}") for i, child in enumerate(tree))]
    raise ValueError(
        f"'{where}' is a {type(tree).__name__}: theta must be made of dicts with string keys, lists and tuples, as whoever loads "
        "it may not have the code that made it"
    )


def _decode_containers(tree: Any, content: _Content) -> PyTree:
    if tree is None:
        return None
    if isinstance(tree, str):
        return jnp.asarray(content.value(tree))
    if isinstance(tree, dict):
        return {key: _decode_containers(child, content) for key, child in tree.items()}
    children = [_decode_containers(child, content) for child in tree[1:]]
    return tuple(children) if tree[0] == "tuple" else children


def _pack(step: int, state: dict[str, PyTree]) -> bytes:
    """The bytes of a checkpoint file."""
    leaves = named_leaves(state)
    keys = {name: str(jax.random.key_impl(leaf)) for name, leaf in leaves if _is_key(leaf)}
    arrays = {name: np.asarray(jax.random.key_data(leaf) if name in keys else leaf) for name, leaf in leaves}
    for name, array in arrays.items():
        if array.dtype.name not in _CODES:
            raise ValueError(f"leaf '{name}' has dtype {array.dtype}, which no checkpoint can hold; it can hold {sorted(_CODES)}")
    shown = "theta" if state.get("average") is None else "average"
    theta_names = [f"{shown}/{name}" if name else shown for name, _ in named_leaves(state[shown])]
    theta = _encode_containers(jax.tree.unflatten(jax.tree.structure(state[shown]), theta_names), shown)
    metadata = {"sha256": _NO_DIGEST, "format": _FORMAT, "step": str(step), "keys": json.dumps(keys), "theta": json.dumps(theta)}
    header: dict[str, Any] = {"__metadata__": metadata}
    # Wide types first: then every array begins at a multiple of its item size, as readers that map the file want it.
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    end = 0
    for name in order:
        array = arrays[name]
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": _CODES[array.dtype.name], "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join([len(text).to_bytes(8, "little"), text, *(arrays[name].tobytes() for name in order)])
    return data.replace(_NO_DIGEST.encode(), hashlib.sha256(data).hexdigest().encode(), 1)


def _unpack(path: Path) -> _Content:
    """Read a checkpoint file and verify it: its digest, and that its header describes its arrays, as anybody may have written it."""
    try:
        content = _unpack_unchecked(path)
        _decode_containers(content.theta, content)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} does not hold a theta: its header does not describe its arrays ({error})") from error
    return content


def _unpack_unchecked(path: Path) -> _Content:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    match = _DIGEST.match(data)
    if match is None:
        raise CheckpointError(f"{path} is not a checkpoint, or its beginning is damaged")
    digest = match.group(1)
    if hashlib.sha256(data.replace(digest, _NO_DIGEST.encode(), 1)).hexdigest().encode() != digest:
        raise CheckpointError(f"{path} is damaged: its content does not have the sha256 that was written with it")
    size = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:size])
    metadata = header.pop("__metadata__")
    if metadata["format"] != _FORMAT:
        raise CheckpointError(f"{path} has the format '{metadata['format']}'; this version of lopt reads '{_FORMAT}'")
    arrays = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        flat = np.frombuffer(data[size + begin : size + end], jnp.dtype(_DTYPES[entry["dtype"]]))
        arrays[name] = flat.reshape(entry["shape"])
    return _Content(path, int(metadata["step"]), arrays, json.loads(metadata["keys"]), json.loads(metadata["theta"]))


def _file(run_dir: str | Path, step: int) -> Path:
    return Path(run_dir) / CHECKPOINTS_DIR / f"{step:08}.safetensors"


def steps(run_dir: str | Path) -> list[int]:
    """The outer steps of which there are checkpoints, ascending. Their content is not looked at."""
    directory = Path(run_dir) / CHECKPOINTS_DIR
    if not directory.is_dir():
        return []
    return sorted(int(match.group(1)) for path in directory.iterdir() if (match := _FILE.fullmatch(path.name)))


def save(run_dir: str | Path, step: int, state: dict[str, PyTree], *, keep: int = 3) -> Path:
    """Write a checkpoint and delete old ones.

    Whenever the process is killed, the checkpoints in the directory are complete: the file appears under its name in one system
    call, after its content is on the disk. What a killed save has left is deleted by the next one.

    Args:
      run_dir: the run directory; created if missing.
      step: outer steps done.
      state: everything the run needs to go on, as a dict of pytrees of arrays (typed keys included), with theta, made of plain
        dicts, lists and tuples, as "theta"; an "average" of it, where there is one, is what `load_theta` gives. Arrays are copied to
        the host before this returns.
      keep: how many checkpoints to keep, of this step and before.

    Returns:
      The path of the file.

    Raises:
      ValueError: naming the leaf that cannot be stored.
      CheckpointError: if the file cannot be written; earlier checkpoints are then intact.

    Example:
      >>> import tempfile
      >>> run_dir = tempfile.mkdtemp()
      >>> _ = save(run_dir, 7, {"theta": {"alpha": jnp.ones(2)}, "key": jax.random.key(0)})
      >>> load_theta(run_dir)
      {'alpha': Array([1., 1.], dtype=float32)}
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}: at least the checkpoint that is being saved must be kept")
    if "theta" not in state:
        raise ValueError(f"the state has no entry 'theta'; its entries are {sorted(state)}")
    data = _pack(step, state)
    path = _file(run_dir, step)
    try:
        make_directory(path.parent)
        for leftover in path.parent.glob(".*.safetensors.*.tmp"):
            leftover.unlink()
        write_atomically(path, data)
        for old in [s for s in steps(run_dir) if s <= step][:-keep]:
            _file(run_dir, old).unlink()
    except OSError as error:
        last = steps(run_dir)
        intact = f"the checkpoint of step {last[-1]} is intact" if last else "there is no checkpoint yet"
        raise CheckpointError(f"cannot save the checkpoint of step {step}: {error}; {intact}") from error
    return path


def _newest(run_dir: str | Path) -> _Content | None:
    """The newest checkpoint that is whole; None if there are no checkpoints."""
    found = steps(run_dir)
    for step in reversed(found):
        try:
            return _unpack(_file(run_dir, step))
        except CheckpointError as error:
            warnings.warn(f"{error}; looking for an earlier checkpoint", RuntimeWarning, stacklevel=3)
    if found:
        raise CheckpointError(
            f"none of the {len(found)} checkpoints in {Path(run_dir) / CHECKPOINTS_DIR} can be used (see the warnings); restore "
            "one from a backup, or move the run directory away to start anew"
        )
    return None


def _place(content: _Content, name: str, leaf: Any) -> Any:
    """A stored leaf as the template has it: same type, devices and sharding."""
    value = content.value(name)
    wanted = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    if value.shape != wanted.shape or value.dtype != wanted.dtype:
        raise CheckpointError(
            f"leaf '{name}' is {value.dtype}{list(value.shape)} in {content.path}, but the run needs {wanted.dtype}"
            f"{list(wanted.shape)}: the checkpoint is of another config or another version"
        )
    if isinstance(leaf, (np.ndarray, np.generic)):
        return np.array(value)
    if not hasattr(leaf, "dtype"):
        return np.asarray(value).item()
    sharding = getattr(leaf, "sharding", None)
    # An array that is not committed to its device may meet arrays on others in one computation: it must stay so.
    if sharding is None or (isinstance(leaf, jax.Array) and not leaf.committed):
        return jnp.asarray(value)
    return jax.device_put(value, sharding)


def restore(run_dir: str | Path, template: dict[str, PyTree]) -> tuple[int, dict[str, PyTree]] | None:
    """Read the newest checkpoint that is whole; of each one that is damaged, a warning gives the file.

    Args:
      run_dir: the run directory.
      template: a state as it was given to `save`, of arrays or `jax.ShapeDtypeStruct`s, of which the structure, shapes, dtypes
        and shardings are used. Leaves are placed on the template's devices, whichever devices they were saved from.

    Returns:
      (outer steps done, state), or None if the run has no checkpoint.

    Raises:
      CheckpointError: if no checkpoint is whole, or naming the leaf that does not fit the template.
    """
    content = _newest(run_dir)
    if content is None:
        return None
    leaves = named_leaves(template)
    missing = [name for name, _ in leaves if name not in content.arrays]
    unexpected = sorted(content.arrays.keys() - {name for name, _ in leaves})
    if missing or unexpected:
        differences = [f"{what} {names}" for what, names in (("it lacks", missing), ("it also has", unexpected)) if names]
        raise CheckpointError(f"{content.path} does not hold the state of this run: {'; '.join(differences)}")
    return content.step, jax.tree.unflatten(jax.tree.structure(template), [_place(content, *named) for named in leaves])


def load_theta(run_dir: str | Path, step: int | None = None) -> PyTree:
    """Theta of an outer step, by default of the newest checkpoint that is whole: plain containers of arrays on the default device.

    Raises:
      CheckpointError: if there is no such checkpoint, or it is damaged.
    """
    if step is None:
        return load_newest_theta(run_dir)[0]
    if step not in steps(run_dir):
        raise CheckpointError(f"no checkpoint of step {step} in {run_dir}; there are those of steps {steps(run_dir)}")
    content = _unpack(_file(run_dir, step))
    return _decode_containers(content.theta, content)


def load_newest_theta(run_dir: str | Path) -> tuple[PyTree, int]:
    """The meta-parameters of the newest checkpoint that is whole, and its outer step; errors are those of `load_theta`."""
    content = _newest(run_dir)
    if content is None:
        raise CheckpointError(f"no checkpoint in {Path(run_dir) / CHECKPOINTS_DIR}: is {run_dir} a run directory?")
    return _decode_containers(content.theta, content), content.step


def chosen_theta(run_dir: str | Path, *, best: bool = True) -> tuple[PyTree, int, str]:
    """The theta of a run that is raced and loaded.

    Args:
      run_dir: the run directory.
      best: the one that did best in the held-out evaluations, where there were any; False: the newest.

    Returns:
      theta, the outer step it is of, and which it is: "best" or "newest". Errors are those of `load_theta`.
    """
    kept = Path(run_dir) / BEST_DIR
    if best and steps(kept):
        return *load_newest_theta(kept), "best"
    return *load_newest_theta(run_dir), "newest"


def pack_theta(theta: PyTree, step: int) -> bytes:
    """The bytes of a safetensors file that holds theta alone, and the outer step it is of; `ValueError` names what cannot be stored."""
    return _pack(step, {"theta": theta})


def read_theta(path: str | Path) -> PyTree:
    """The theta that a file of `pack_theta` holds, whoever wrote it: data alone, nothing in it is executed.

    Raises:
      CheckpointError: naming the file that is missing, cut short or not what its digest says.
    """
    content = _unpack(Path(path))
    return _decode_containers(content.theta, content)
