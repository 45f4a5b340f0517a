"""Where images come from: scikit-learn's digits, IDX files, an .npz file, a data set of tfds's. Found first, read later."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tasks.datasets import idx, npz, tfds
from tasks.datasets.errors import DatasetError
from tasks.datasets.idx import Examples
from tasks.datasets.places import Reader, Source, is_path, locate
from tasks.datasets.resize import area_average

_LARGE = 1 << 31  # bytes of a split above which its images are shrunk one by one, as they are read


@dataclasses.dataclass(frozen=True)
class Raw:
    """Images and labels as a source holds them.

    Attributes:
      splits: "train" and, where the source has one, "test" -> images uint8 [N, H, W] or [N, H, W, 3], labels [N].
      num_classes: labels are 0 ... num_classes - 1.
      ready: the images are shrunk and in an order that depends on the examples alone, as they were too large, or of too many
        shapes, to be kept as they are.
    """

    splits: dict[str, Examples]
    num_classes: int
    ready: bool = False


@dataclasses.dataclass(frozen=True)
class KnownImages:
    """What is known of a data set before it is found.

    Attributes:
      image_shape: (H, W), or (H, W, 3) for colour.
      num_classes: labels are 0 ... num_classes - 1.
      scale: the value of white.
      held_out: the part of the train examples that goes to inner valid, outer valid and, without a test split, test.
      package: the Debian package that has it.
    """

    image_shape: tuple[int, ...]
    num_classes: int
    scale: int = 255
    held_out: tuple[float, ...] = (0.1, 0.1)
    package: str | None = None


KNOWN = {
    "digits": KnownImages((8, 8), 10, scale=16, held_out=(0.1, 0.1, 0.1)),
    "fashion_mnist": KnownImages((28, 28), 10, held_out=(1 / 12, 1 / 12), package="dataset-fashion-mnist"),
    "mnist": KnownImages((28, 28), 10, held_out=(1 / 12, 1 / 12)),
    "cifar10": KnownImages((32, 32, 3), 10),
    "cifar100": KnownImages((32, 32, 3), 100),
    "svhn_cropped": KnownImages((32, 32, 3), 10),
}


def find_images(name: str, data_dir: str | None, size: int | None) -> Source[Raw]:
    """Find a data set of images.

    Args:
      name: a key of `KNOWN`, a path or a name of tfds's.
      data_dir: the only place to look at, or None for the usual ones.
      size: height and width to which images are shrunk that cannot be kept as they are; None: those are an error.

    Raises:
      DatasetError: if it is not found, with the ways to get it.
    """
    known = KNOWN.get(name)
    if name == "digits":
        if data_dir is not None:
            raise DatasetError(f"'digits' comes with scikit-learn and is not read from data_dir {data_dir}; leave data_dir out")
        return Source("scikit-learn", _digits, version=_version("scikit-learn"))
    if known is None and is_path(name):
        if data_dir is not None:
            raise DatasetError(f"{name} is a path and is not looked for in data_dir {data_dir}; leave data_dir out")
        return _at_path(Path(name).expanduser())
    reader = Reader(
        plain=functools.partial(_in_directory, name=name, known=known),
        prepared=functools.partial(_prepared, known=known, size=size),
        check=image_features,
        files=f"the IDX files {', '.join(idx.FILE_NAMES)} (each plain or .gz) or {tfds.base_name(name)}.npz with the arrays {npz.ARRAYS}",
        package=known.package if known else None,
    )
    return locate(name, data_dir, reader)


def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return package


def _digits() -> Raw:
    try:
        from sklearn.datasets import load_digits  # slow to import, and an extra
    except ImportError as error:
        raise DatasetError(
            f"'digits' comes with scikit-learn, which cannot be imported ({error}): pip install scikit-learn"
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    return Raw({"train": (pixels.astype(np.uint8).reshape(-1, 8, 8), labels.astype(np.uint8))}, 10)


def _at_path(path: Path) -> Source[Raw]:
    if path.is_dir():
        if idx.holds_idx(path):
            return Source(str(path), lambda: _counted(idx.load_idx(path)), idx.idx_paths(path))
        raise DatasetError(f"the directory {path} holds none of the IDX files {', '.join(idx.FILE_NAMES)}, plain or .gz")
    if path.is_file():
        return Source(str(path), lambda: _counted(npz.load_npz(path)), (path,))
    raise DatasetError(f"there is no file or directory {path}")


def _counted(splits: dict[str, Examples]) -> Raw:
    """The classes are those up to the largest label."""
    return Raw(splits, 1 + max(int(labels.max(initial=0)) for _, labels in splits.values()))


def _in_directory(directory: Path, name: str, known: KnownImages | None) -> Source[Raw] | None:
    file = directory / f"{tfds.base_name(name)}.npz"
    if idx.holds_idx(directory):
        paths, load = idx.idx_paths(directory), lambda: idx.load_idx(directory, known.image_shape if known else None)
    elif file.is_file():
        paths, load = (file,), lambda: npz.load_npz(file)
    else:
        return None

    def read() -> Raw:
        raw = _counted(load())
        return dataclasses.replace(raw, num_classes=known.num_classes) if known else raw

    return Source(str(paths[0] if paths == (file,) else directory), read, paths)


def _prepared(directory: Path, known: KnownImages | None, size: int | None) -> Source[Raw]:
    files = tuple(sorted(path for path in directory.iterdir() if path.is_file()))
    return Source(str(directory), lambda: _read_prepared(directory, known, size), files)


def image_features(builder: Any) -> tuple[str, str]:
    """The names of a tfds data set's image and label, or a `DatasetError` if it is not for image classification."""
    import tensorflow_datasets

    types, features = tensorflow_datasets.features, dict(builder.info.features.items())
    keys = builder.info.supervised_keys
    image, label = keys if keys and len(keys) == 2 else ("image", "label")
    if isinstance(features.get(image), types.Image) and isinstance(features.get(label), types.ClassLabel):
        if np.dtype(features[image].np_dtype) == np.uint8 and features[image].shape[-1] in (1, 3):
            return image, label
        reason = f"'{image}' is {features[image]}, not uint8 with 1 or 3 channels"
    else:
        reason = (
            f"its features are {', '.join(f'{name}: {type(feature).__name__}' for name, feature in sorted(features.items()))}"
        )
    raise DatasetError(f"the tfds data set '{builder.info.full_name}' is not one of images with a class each: {reason}")


def _read_prepared(directory: Path, known: KnownImages | None, size: int | None) -> Raw:
    builder = tfds.open_prepared(directory)
    image, label = image_features(builder)
    splits = {"train": "train", "test": "test"}
    if known is None:
        test = next((split for split in ("test", "validation") if split in builder.info.splits), None)
        splits = {"train": "train"} | ({"test": test} if test else {})
    shape = builder.info.features[image].shape
    largest = max(
        (builder.info.splits[split].num_examples for split in splits.values() if split in builder.info.splits), default=0
    )
    one_by_one = None in shape or math.prod(shape) * largest > _LARGE
    expected = (*known.image_shape, 1)[:3] if known else None
    read = {}
    for name, split in splits.items():
        what = f"the '{split}' split of the tfds data set in {directory}"
        pairs = ((example[image], example[label]) for example in tfds.examples(builder, split))
        read[name] = _shrunk(what, pairs, size) if one_by_one else _stacked(what, pairs, expected or shape)
    return Raw(read, builder.info.features[label].num_classes, ready=one_by_one)


def _stacked(what: str, pairs: Iterable[tuple[np.ndarray, int]], shape: tuple[int, ...]) -> Examples:
    """Images of one shape, as they are."""
    images, labels = [], []
    for image, label in pairs:
        images.append(image)
        labels.append(label)
    shapes = {np.shape(image) for image in images}
    if shapes - {shape}:
        raise DatasetError(f"{what} holds images of shapes {sorted(shapes)}, where {shape} is expected")
    stacked = np.stack(images) if images else np.zeros((0, *shape), np.uint8)
    return (stacked[..., 0] if shape[2] == 1 else stacked), np.array(labels, np.int64)


def _shrunk(what: str, pairs: Iterable[tuple[np.ndarray, int]], size: int | None) -> Examples:
    """Images of any shape, each shrunk as it comes, sorted by a digest of what they were before."""
    if size is None:
        raise DatasetError(
            f"{what} holds images of many shapes, or too many to keep as they are: use load_images, which shrinks them"
        )
    images, labels, digests = [], [], []
    for index, (image, label) in enumerate(pairs):
        if min(image.shape[:2]) < size:
            raise DatasetError(f"{what}: image {index} is {image.shape[0]}x{image.shape[1]}, smaller than image_size {size}")
        row = np.array([*image.shape, label], ">u4").tobytes() + image.tobytes()
        digests.append(hashlib.blake2b(row, digest_size=16).digest())
        images.append(area_average(image[None], size)[0])
        labels.append(label)
    order = np.argsort(np.array(digests, "V16"), kind="stable")
    stacked = np.stack(images)[order] if images else np.zeros((0, size, size, 3), np.uint8)
    return (stacked[..., 0] if stacked.shape[3] == 1 else stacked), np.array(labels, np.int64)[order]
