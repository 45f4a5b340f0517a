"""Grayscale image classification on the device: find the data, shrink it, split it.

| name | images | levels | classes | splits (train / inner valid / outer valid / test) |
|---|---|---|---|---|
| digits | 8x8, of scikit-learn | 0 ... 16 | 10 | 1,257 / 180 / 180 / 180 |
| mnist, fashion_mnist | 28x28 | 0 ... 255 | 10 | 50,000 / 5,000 / 5,000 / 10,000 |
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from lopt.task import ArraySplit, Datasets
from tasks.datasets import idx, tfds
from tasks.datasets.errors import DatasetError
from tasks.datasets.idx import Examples
from tasks.datasets.resize import area_average
from tasks.datasets.splits import split_indices


@dataclasses.dataclass(frozen=True)
class ImageInfo:
    """What a task must know about its images.

    Attributes:
      name: of the data set.
      num_classes: labels are 0 ... num_classes - 1.
      image_shape: (H, W) in pixels, after resizing.
      scale: the stored value of white: `image / scale` is in [0, 1].
      source: where the data came from, for the log.
    """

    name: str
    num_classes: int
    image_shape: tuple[int, int]
    scale: int
    source: str


@dataclasses.dataclass(frozen=True)
class _Known:
    image_shape: tuple[int, int]
    scale: int
    num_classes: int
    held_out: tuple[float, ...]  # the part of the train examples that goes to each later split; two where test has its own
    debian_package: str | None = None


_KNOWN = {
    "digits": _Known((8, 8), 16, 10, (0.1, 0.1, 0.1)),
    "fashion_mnist": _Known((28, 28), 255, 10, (1 / 12, 1 / 12), "dataset-fashion-mnist"),
    "mnist": _Known((28, 28), 255, 10, (1 / 12, 1 / 12)),
}
KNOWN_IMAGES = tuple(_KNOWN)


def check_images(name: str, image_size: int) -> None:
    """Raise unless `load_images` knows the data set and can make images of that size.

    Raises:
      ValueError: naming the known data sets, or the sizes that this one can have.
    """
    if name not in _KNOWN:
        raise ValueError(f"unknown image data set '{name}'; the known ones are {', '.join(_KNOWN)}")
    largest = min(_KNOWN[name].image_shape)
    if not 1 <= image_size <= largest:
        raise ValueError(f"image_size must be from 1 to {largest} for '{name}', not {image_size}")


def system_directories(name: str) -> list[Path]:
    """Where a system keeps a data set: `datasets/NAME` in $XDG_DATA_HOME, $XDG_DATA_DIRS and /usr/share, in this order."""
    home = os.environ.get("XDG_DATA_HOME") or str(Path("~/.local/share").expanduser())
    shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    roots = [Path(root) for root in (home, *shared.split(":"), "/usr/share") if os.path.isabs(root)]
    return [root / "datasets" / name.replace("_", "-") for root in dict.fromkeys(roots)]


def _digits() -> dict[str, Examples]:
    try:
        from sklearn.datasets import load_digits  # slow to import, and an extra
    except ImportError as error:
        raise DatasetError(
            f"'digits' comes with scikit-learn, which cannot be imported ({error}): pip install 'lopt[tasks]'"
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    return {"train": (pixels.astype(np.uint8).reshape(-1, 8, 8), labels.astype(np.uint8))}


def _from_given(name: str, directory: Path) -> tuple[dict[str, Examples], str]:
    if idx.holds_idx(directory):
        return idx.load_idx(directory, _KNOWN[name].image_shape), str(directory)
    prepared = tfds.find_prepared(directory, name)
    if prepared is None:
        raise DatasetError(
            f"data_dir {directory} {'holds' if directory.is_dir() else 'is not a directory with'} neither the IDX files "
            f"{', '.join(idx.FILE_NAMES)} (each plain or .gz) nor a prepared tfds data set {name}/VERSION/dataset_info.json"
        )
    try:
        return tfds.load_prepared(prepared, _KNOWN[name].image_shape), str(prepared)
    except ImportError as error:
        raise DatasetError(f"{prepared} holds a tfds data set, but tfds cannot be imported ({error}): {tfds.INSTALL}") from error


def _from_usual_places(name: str) -> tuple[dict[str, Examples], str]:
    tfds_state = f"{tfds.default_root()} has none"
    prepared = tfds.find_prepared(tfds.default_root(), name)
    if prepared is not None:
        try:
            return tfds.load_prepared(prepared, _KNOWN[name].image_shape), str(prepared)
        except ImportError as error:
            tfds_state = f"there is one in {prepared}, but tfds cannot be imported: {error}"
    for directory in system_directories(name):
        if idx.holds_idx(directory):
            return idx.load_idx(directory, _KNOWN[name].image_shape), str(directory)
    package = _KNOWN[name].debian_package
    raise DatasetError(
        f"the data set '{name}' was not found. Do one of these:\n"
        f"  - give a directory (data_dir) with its IDX files {', '.join(idx.FILE_NAMES)}, each plain or .gz;\n"
        f"  - {tfds.INSTALL} and prepare it there or in $TFDS_DATA_DIR (needs TensorFlow once): "
        f"tfds build {name} --file_format=array_record ({tfds_state});\n"
        f"  - {f'apt-get install {package}, or ' if package else ''}put the IDX files into one of "
        f"{', '.join(map(str, system_directories(name)))}."
    )


def read_images(name: str, data_dir: str | None = None) -> tuple[dict[str, Examples], str]:
    """The examples of a data set as its source holds them: the first source found, unsplit and not resized.

    Args:
      name: one of `KNOWN_IMAGES`.
      data_dir: directory with IDX files or a prepared tfds data set, and then no other place is looked at; None looks at the
        usual places, tfds first. `digits` comes with scikit-learn and takes None only.

    Returns:
      "train" and, where the source has one, "test" -> images uint8 [N, H, W], labels uint8 [N]; and the name of the source.

    Raises:
      DatasetError: if no source has it, or a file is damaged, or a label is not a class.
    """
    check_images(name, 1)
    known = _KNOWN[name]
    if name == "digits":
        if data_dir is not None:
            raise DatasetError(f"'digits' comes with scikit-learn and is not read from data_dir {data_dir}; leave data_dir out")
        splits, source = _digits(), "scikit-learn"
    elif data_dir is not None:
        splits, source = _from_given(name, Path(data_dir).expanduser())
    else:
        splits, source = _from_usual_places(name)
    for split, (_, labels) in splits.items():
        if labels.size and labels.max() >= known.num_classes:
            raise DatasetError(
                f"{source}: the '{split}' split has the label {labels.max()}, but '{name}' has {known.num_classes} classes"
            )
    return splits, source


def _split(known: _Known, splits: Mapping[str, Examples], seed: int) -> list[Examples]:
    images, labels = splits["train"]
    parts = [(images[index], labels[index]) for index in split_indices(images, labels, known.held_out, seed)]
    if "test" in splits:
        images, labels = splits["test"]
        parts += [(images[index], labels[index]) for index in split_indices(images, labels, (), seed)]
    return parts


def load_images(
    name: str, image_size: int, batch_size: int, data_dir: str | None = None, seed: int = 0
) -> tuple[Datasets, ImageInfo]:
    """Load an image data set onto the device, shrunk by area averaging and split four ways.

    A split depends on the examples and the seed alone: not on the source, the order of its files, or `image_size`.

    Args:
      name: one of `KNOWN_IMAGES`.
      image_size: height and width wanted, in pixels, at most those of the source.
      batch_size: B, examples a batch.
      data_dir: see `read_images`.
      seed: of the split; where the source has a test split, that stays the test split for every seed.

    Returns:
      `Datasets` whose arrays are "image", uint8 [N, image_size, image_size], and "label", int32 [N]; and the `ImageInfo`.

    Raises:
      ValueError: for an unknown name or a size that the data set cannot have.
      DatasetError: a ValueError: if no source has the data set, or a file is damaged.

    Example:
      >>> datasets, info = load_images("digits", image_size=8, batch_size=32)
      >>> datasets.train.arrays["image"].shape, info.num_classes, info.scale
      ((1257, 8, 8), 10, 16)
    """
    check_images(name, image_size)
    known = _KNOWN[name]
    splits, source = read_images(name, data_dir)
    train, inner_valid, outer_valid, test = (
        ArraySplit(
            {"image": jnp.asarray(area_average(images, image_size)), "label": jnp.asarray(labels.astype(np.int32))}, batch_size
        )
        for images, labels in _split(known, splits, seed)
    )
    info = ImageInfo(name, known.num_classes, (image_size, image_size), known.scale, source)
    return Datasets(train, inner_valid, outer_valid, test), info
