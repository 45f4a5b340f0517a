"""Image data sets in one .npz file, as `numpy.savez` writes it.

The arrays are `train_images`, `train_labels` and, where the data has a test split of its own, `test_images`, `test_labels`; or
`images` and `labels` alone. `x_train`, `y_train`, `x_test`, `y_test` are understood too. Images are uint8 [N, H, W] or
[N, H, W, 3], labels integers [N] from 0.
"""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from tasks.datasets.errors import DatasetError
from tasks.datasets.idx import Examples

ARRAYS = "train_images, train_labels (and test_images, test_labels), or images, labels"

_NAMES = (  # train images and labels, then those of the test split
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("x_train", "y_train", "x_test", "y_test"),
    ("images", "labels", "", ""),
)


def load_npz(path: Path) -> dict[str, Examples]:
    """Read the image data set in an .npz file.

    Args:
      path: the file; arrays of other names in it are left alone.

    Returns:
      "train" and, if the file has it, "test" -> images uint8 [N, H, W] or [N, H, W, 3], labels [N].

    Raises:
      DatasetError: naming the file, if it cannot be read or is damaged, an array is missing or has another type or shape than
        it must have, or images and labels differ in number.
    """
    try:
        with path.open("rb") as content:  # np.load leaves a file open that it cannot read
            file = np.load(content, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise DatasetError(f"{path} holds one array, not the arrays {ARRAYS}; write it with numpy.savez")
            names = next((names for names in _NAMES if names[0] in file), None)
            if names is None:
                raise DatasetError(f"{path} holds the arrays {', '.join(file) or '(none)'}, where it must hold {ARRAYS}")
            pairs = {"train": names[:2]} | ({"test": names[2:]} if names[2] in file or names[3] in file else {})
            missing = [name for pair in pairs.values() for name in pair if name not in file]
            if missing:
                raise DatasetError(f"{path} has no array {missing[0]}; it holds {', '.join(file)}")
            splits = {split: (file[images], file[labels]) for split, (images, labels) in pairs.items()}
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, RuntimeError, ValueError) as error:  # RuntimeError: flipped bits
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{path} is no .npz file, or a truncated or damaged one ({error}); write it again") from error
    for split, (images, labels) in splits.items():
        _check(f"{path}: {pairs[split][0]}", images, f"{path}: {pairs[split][1]}", labels)
    if "test" in splits and splits["test"][0].shape[1:] != splits["train"][0].shape[1:]:
        shapes = " and ".join(str(images.shape[1:]) for images, _ in splits.values())
        raise DatasetError(f"{path} holds train and test images of different shapes, {shapes}")
    return splits


def _check(images_name: str, images: np.ndarray, labels_name: str, labels: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (3,)) or 0 in images.shape[1:]:
        raise DatasetError(
            f"{images_name} is {images.dtype} of shape {images.shape}, where uint8 [N, H, W] or [N, H, W, 3] is expected"
        )
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DatasetError(f"{labels_name} is {labels.dtype} of shape {labels.shape}, where integers [N] are expected")
    if len(images) != len(labels):
        raise DatasetError(f"{images_name} holds {len(images)} images, but {labels_name} holds {len(labels)} labels")
