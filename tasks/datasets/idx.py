"""Image data sets in IDX files, the format of the original MNIST: big-endian header, then bytes.

An IDX file starts with the magic number `00 00 type rank`, then `rank` sizes of 4 bytes each, then the values, last axis
fastest. Type 08 is unsigned bytes, the only one in use for images and labels.

References:
  LeCun, Cortes, Burges, "The MNIST database of handwritten digits", section "File formats".
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from tasks.datasets.errors import DatasetError

Examples = tuple[np.ndarray, np.ndarray]  # images uint8 [N, H, W], labels uint8 [N]

_FILES = {  # split -> (images, labels); each may also end in .gz
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
FILE_NAMES = tuple(name for pair in _FILES.values() for name in pair)


def read_idx(path: Path, rank: int) -> np.ndarray:
    """Read one IDX file of unsigned bytes, gzipped or not (told by its content, not its name).

    Args:
      path: the file.
      rank: number of axes it must have: 3 for images, 1 for labels.

    Returns:
      uint8 array of that rank.

    Raises:
      DatasetError: naming the file, if it cannot be read, its gzip stream is cut short or damaged, its magic number is not
        the expected one, or it holds more or fewer values than its header says.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DatasetError(f"{path} is a truncated or damaged gzip file ({error}); fetch it again") from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}") from error
    header = 4 + 4 * rank
    if len(content) < header:
        raise DatasetError(
            f"{path} ends inside its header: {len(content)} bytes, where an IDX header of rank {rank} has {header}"
        )
    expected = bytes((0, 0, 8, rank))
    if content[:4] != expected:
        raise DatasetError(
            f"{path} starts with the magic number 0x{content[:4].hex()}, where an IDX file of unsigned bytes and rank {rank} "
            f"starts with 0x{expected.hex()}"
        )
    shape = struct.unpack(f">{rank}I", content[4:header])
    if len(content) - header != math.prod(shape):
        raise DatasetError(f"{path} holds {len(content) - header} values, but its header says shape {shape}: {math.prod(shape)}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _find(directory: Path, name: str) -> Path | None:
    return next((path for path in (directory / name, directory / f"{name}.gz") if path.is_file()), None)


def holds_idx(directory: Path) -> bool:
    """Whether any of the four files is there; if some are, all must be."""
    return bool(idx_paths(directory))


def idx_paths(directory: Path) -> tuple[Path, ...]:
    """Those of the four files that are there."""
    return tuple(path for name in FILE_NAMES if (path := _find(directory, name)) is not None)


def load_idx(directory: Path, image_shape: tuple[int, ...] | None = None) -> dict[str, Examples]:
    """Read the four IDX files of a directory.

    Args:
      directory: holds the files of `FILE_NAMES`, each plain or with `.gz`.
      image_shape: (H, W) that the images must have, in pixels; None: that of the train images.

    Returns:
      "train" and "test" -> images uint8 [N, H, W], labels uint8 [N].

    Raises:
      DatasetError: naming the file that is missing, unreadable, of the wrong shape, or that disagrees with its partner.
    """
    splits = {}
    for split, names in _FILES.items():
        found = {name: _find(directory, name) for name in names}
        missing = [name for name, path in found.items() if path is None]
        if missing:
            raise DatasetError(
                f"{directory} has no file {missing[0]} or {missing[0]}.gz; it needs all of {', '.join(FILE_NAMES)}"
            )
        images_path, labels_path = (path for path in found.values() if path is not None)
        images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
        image_shape = image_shape or images.shape[1:]
        if images.shape[1:] != image_shape:
            raise DatasetError(f"{images_path} holds images of shape {images.shape[1:]}, where {image_shape} is expected")
        if len(images) != len(labels):
            raise DatasetError(f"{images_path} holds {len(images)} images, but {labels_path} holds {len(labels)} labels")
        splits[split] = (images, labels)
    return splits
