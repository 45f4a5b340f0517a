"""Preprocessed arrays kept on disk: resized images, token ids.

An entry is a directory `KIND-KEY` with one file of raw values an array and `entry.json`, which says what they are. The key is a
digest of the settings that the arrays were made with and of the files that they were made from (path, size, time of change), so
that a changed setting or source is another entry. An entry is written under another name and renamed when it is complete. Every
MiB has a checksum, so that a part can be read and checked without the rest: a damaged entry is built anew, never used.
"""

import atexit
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lopt.task import UntrustedCacheError, cache_root, private_directory, replace_durably
from tasks.datasets.errors import DatasetError

_FORMAT = 1
_BLOCK = 1 << 20  # bytes to a checksum
_META = "entry.json"
_UNFINISHED = ".unfinished-"
_ABANDONED = 2 * 86_400  # seconds after which an unfinished entry is taken away


class DamagedCacheError(DatasetError):
    """A file of the cache that is not what was written."""


def fingerprint(paths: Sequence[Path]) -> list[list[Any]]:
    """What tells that a file has changed, without reading it: path, size in bytes, time of change in ns.

    Raises:
      DatasetError: naming a file that is gone or may not be looked at.
    """
    try:
        return [[str(path.resolve()), (stat := path.stat()).st_size, stat.st_mtime_ns] for path in paths]
    except OSError as error:
        raise DatasetError(f"{error.filename} cannot be read: {error.strerror}") from error


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array of an entry; its rows are read from the file when they are asked for.

    Attributes:
      path: of its values, C order, little-endian.
      dtype: of the values.
      shape: [N, ...].
      checksums: CRC-32 of each MiB, the last one possibly shorter.
    """

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    checksums: tuple[int, ...]

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows `start` to `stop` (to the end), read-only, with the checksums of the blocks that they lie in checked.

        Raises:
          DamagedCacheError: naming the file that is gone, cut short or changed.
        """
        stop = len(self) if stop is None else stop
        if not 0 <= start <= stop <= len(self):
            raise ValueError(f"rows {start} to {stop} of {self.path}, which has {len(self)}")
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        first, last = start * row // _BLOCK, -(-stop * row // _BLOCK)
        offset, end = first * _BLOCK, min(last * _BLOCK, self.nbytes)
        try:
            with self.path.open("rb") as file:
                # A read, not a memory map: where a mapped file is cut short, touching the map kills the process.
                file.seek(offset)
                content = file.read(end - offset)
        except OSError as error:
            raise DamagedCacheError(f"{self.path} cannot be read: {error.strerror}") from error
        view = memoryview(content)
        for index, expected in enumerate(self.checksums[first:last]):
            if zlib.crc32(view[index * _BLOCK : (index + 1) * _BLOCK]) != expected:
                at = offset + index * _BLOCK
                raise DamagedCacheError(
                    f"{self.path} is damaged at byte {at} or after; delete {self.path.parent} and start again"
                )
        values = np.frombuffer(view[start * row - offset : stop * row - offset], self.dtype)
        return values.reshape(stop - start, *self.shape[1:])


@dataclasses.dataclass(frozen=True)
class Entry:
    """What was kept.

    Attributes:
      directory: of the files.
      arrays: by name.
      extra: what else `build` returned, such as a vocabulary.
    """

    directory: Path
    arrays: Mapping[str, StoredArray]
    extra: Mapping[str, Any]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())


class Writer:
    """Writes the arrays of an entry, a part at a time, so that they need not fit into memory."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._arrays: dict[str, _Growing] = {}

    def append(self, name: str, rows: np.ndarray) -> None:
        """Add rows [n, ...] to the array of that name; its first rows decide dtype and shape of a row.

        Raises:
          DatasetError: if there is no room.
        """
        try:
            if name not in self._arrays:
                self._arrays[name] = _Growing(self._directory / f"{name}.bin", rows.dtype, rows.shape[1:])
            self._arrays[name].append(rows)
        except OSError as error:
            raise _cannot_write(self._directory.parent, error) from error

    def finish(self, identity: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
        """Close the files and say what they are."""
        self.close()
        arrays = {name: array.describe() for name, array in self._arrays.items()}
        body = json.dumps({"identity": identity, "arrays": arrays, "extra": extra}).encode()
        (self._directory / _META).write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)

    def close(self) -> None:
        for array in self._arrays.values():
            array.file.close()


class _Growing:
    """One array that is being written, and its checksums so far."""

    def __init__(self, path: Path, dtype: np.dtype, row: tuple[int, ...]):
        self.file = path.open("wb")
        self._dtype, self._row, self._rows = dtype.newbyteorder("<"), row, 0
        self._checksums: list[int] = []
        self._filled = _BLOCK  # of the last block

    def append(self, rows: np.ndarray) -> None:
        if rows.shape[1:] != self._row:
            raise ValueError(f"rows of shape {rows.shape[1:]} after rows of shape {self._row}")
        data = np.ascontiguousarray(rows, self._dtype).reshape(-1).view(np.uint8).data
        self.file.write(data)
        self._rows += len(rows)
        while data:
            if self._filled == _BLOCK:
                self._checksums.append(0)
                self._filled = 0
            part = data[: _BLOCK - self._filled]
            self._checksums[-1] = zlib.crc32(part, self._checksums[-1])
            self._filled += len(part)
            data = data[len(part) :]

    def describe(self) -> dict[str, Any]:
        return {"dtype": self._dtype.str, "shape": [self._rows, *self._row], "crc32": self._checksums}


def _cannot_write(place: Path, error: OSError) -> DatasetError:
    return DatasetError(
        f"preprocessed data cannot be written to {place}: {error.strerror}; make room, or set LOPT_CACHE_DIR to another place"
    )


def _open(directory: Path, identity: Mapping[str, Any], check_bytes: float) -> Entry | None:
    """The entry in a directory, None where there is none; raises `DamagedCacheError`."""
    path = directory / _META
    try:
        content = path.read_bytes()
    except OSError as error:
        if not os.path.exists(directory):
            return None
        raise DamagedCacheError(f"{path} cannot be read: {error.strerror}") from error
    digest, _, body = content.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise DamagedCacheError(f"{path} is damaged")
    meta = json.loads(body)
    if meta["identity"] != identity:
        raise DamagedCacheError(f"{path} belongs to other settings")
    arrays = {
        name: StoredArray(directory / f"{name}.bin", np.dtype(said["dtype"]), tuple(said["shape"]), tuple(said["crc32"]))
        for name, said in meta["arrays"].items()
    }
    for array in arrays.values():
        size = array.path.stat().st_size if array.path.is_file() else None
        if size != array.nbytes:
            raise DamagedCacheError(
                f"{array.path} {'is missing' if size is None else f'has {size} bytes'}, not {array.nbytes} bytes"
            )
    entry = Entry(directory, arrays, meta["extra"])
    if entry.nbytes <= check_bytes:
        for array in arrays.values():
            array.read()
    return entry


def _unfinished_directory(root: Path) -> tuple[Path, bool]:
    """A fresh directory below `root`, True; where that cannot be written, one that goes when the process ends, False."""
    try:
        private_directory(root)
        for left in root.glob(f"{_UNFINISHED}*"):  # by a process that was killed
            with contextlib.suppress(FileNotFoundError):  # renamed in between: it is finished
                if time.time() - left.stat().st_mtime > _ABANDONED:
                    shutil.rmtree(left, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=root)), True
    except (OSError, UntrustedCacheError) as error:
        why = f": {error}"
        if isinstance(error, OSError):
            why = f", as {root} cannot be written ({error.strerror}); set LOPT_CACHE_DIR to another place"
        warnings.warn(f"preprocessed data is not kept{why}", stacklevel=4)
        directory = Path(tempfile.mkdtemp(prefix="lopt-cache-"))
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
        return directory, False


def _build(directory: Path, identity: Mapping[str, Any], build: Callable[[Writer], Mapping[str, Any]]) -> Path:
    """Write an entry and then give it its name; where it lies."""
    unfinished, keep = _unfinished_directory(directory.parent)
    writer = Writer(unfinished)
    try:
        extra = build(writer)
        try:
            writer.finish(identity, extra)
            if not keep:
                return unfinished
            replace_durably(unfinished, directory)
        except OSError as error:
            if not (directory / _META).exists():
                raise _cannot_write(directory.parent, error) from error
            shutil.rmtree(unfinished)  # another process was faster; what it built is the same
    except BaseException:
        with contextlib.suppress(OSError):  # of a full disk, which has been reported
            writer.close()
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return directory


def _is_own(root: Path) -> bool:
    """Whether what lies there can be the user's alone; where it cannot be told, it is not there or cannot be read either."""
    try:
        return root.exists() and bool(private_directory(root))
    except (OSError, UntrustedCacheError):
        return False


def cached(
    kind: str, settings: Mapping[str, Any], build: Callable[[Writer], Mapping[str, Any]], check_bytes: float = math.inf
) -> Entry:
    """The entry of these settings: the one in the cache, or a new one.

    Args:
      kind: of the entry, the first part of its name.
      settings: all that the arrays depend on, JSON values: sizes, seeds, the `fingerprint` of the source's files.
      build: `build(writer) -> extra` appends to the writer all that the arrays hold; `extra` is kept as JSON.
      check_bytes: an entry up to this size is checked in full before it is used, a larger one where it is read.

    Raises:
      DatasetError: if the cache is full, or from `build`.
    """
    identity = json.loads(json.dumps({"format": _FORMAT, "kind": kind, **settings}))
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]
    directory = cache_root() / f"{kind}-{key}"
    entry = None
    try:
        if _is_own(directory.parent):
            entry = _open(directory, identity, check_bytes)
    except DamagedCacheError as error:
        warnings.warn(f"the cache entry is built again: {error}", stacklevel=2)
        shutil.rmtree(directory, ignore_errors=True)
        entry = None
    if entry is None:
        entry = _open(_build(directory, identity, build), identity, check_bytes)
    assert entry is not None  # it has just been written
    return entry
