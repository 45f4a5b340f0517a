"""Image classification on the device: find the data, shrink it, split it.

| name | images | levels | classes | splits (train / inner valid / outer valid / test) |
|---|---|---|---|---|
| digits | 8x8, of scikit-learn | 0 ... 16 | 10 | 1,257 / 180 / 180 / 180 |
| mnist, fashion_mnist | 28x28 | 0 ... 255 | 10 | 50,000 / 5,000 / 5,000 / 10,000 |
| cifar10 | 32x32x3 | 0 ... 255 | 10 | 40,000 / 5,000 / 5,000 / 10,000 |
| cifar100 | 32x32x3 | 0 ... 255 | 100 | 40,000 / 5,000 / 5,000 / 10,000 |
| svhn_cropped | 32x32x3 | 0 ... 255 | 10 | 58,605 / 7,326 / 7,326 / 26,032 |
| a path: an .npz file, a directory with IDX files | any | 0 ... 255 | up to the largest label | as below |
| any image classification of tfds's | any | 0 ... 255 | as tfds says | as below |

Of a path and of tfds's, the test split is the source's own (`validation` where tfds has no `test`), and a tenth of the train
examples is inner valid, another outer valid; without a split of its own, test takes a third tenth.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from lopt.task import ArraySplit, Datasets
from tasks.datasets.cache import Writer, cached
from tasks.datasets.errors import DatasetError
from tasks.datasets.idx import Examples
from tasks.datasets.image_sources import KNOWN, Raw, find_images
from tasks.datasets.places import Source, check_name
from tasks.datasets.resize import area_average
from tasks.datasets.splits import canonical_order, random_parts

KNOWN_IMAGES = tuple(KNOWN)


@dataclasses.dataclass(frozen=True)
class ImageInfo:
    """What a task must know about its images.

    Attributes:
      name: of the data set.
      num_classes: labels are 0 ... num_classes - 1.
      image_shape: (H, W) in pixels, after resizing; (H, W, 3) for colour.
      scale: the stored value of white: `image / scale` is in [0, 1].
      source: where the data came from, for the log.
    """

    name: str
    num_classes: int
    image_shape: tuple[int, ...]
    scale: int
    source: str


def check_images(dataset: str, image_size: int, data_dir: str | None = None) -> None:
    """Raise unless `load_images` may find the data set and can make images of that size.

    Args:
      dataset: a name or a path.
      image_size: height and width wanted, in pixels.
      data_dir: as in `load_images`; with it, names are allowed that tfds does not know.

    Raises:
      ValueError: naming the known data sets, or the sizes that this one can have.
    """
    check_name("image", dataset, KNOWN_IMAGES, data_dir)
    largest = min(KNOWN[dataset].image_shape[:2]) if dataset in KNOWN else None
    if image_size < 1 or (largest and image_size > largest):
        raise ValueError(
            f"image_size must be {f'from 1 to {largest}' if largest else 'at least 1'} for '{dataset}', not {image_size}"
        )


def _read(dataset: str, source: Source[Raw]) -> Raw:
    """Read a source and check what a wrong file would get wrong."""
    raw, known = source.read(), KNOWN.get(dataset)
    for split, (images, labels) in raw.splits.items():
        what = f"{source.label}: the '{split}' split"
        if known and not raw.ready and images.shape[1:] != known.image_shape:
            raise DatasetError(f"{what} holds images of shape {images.shape[1:]}, where {known.image_shape} is expected")
        if labels.size and not 0 <= labels.min() <= labels.max() < raw.num_classes:
            wrong = labels.min() if labels.min() < 0 else labels.max()
            raise DatasetError(f"{what} has the label {wrong}, but '{dataset}' has {raw.num_classes} classes")
    return raw


def read_images(dataset: str, data_dir: str | None = None) -> tuple[dict[str, Examples], str]:
    """The examples of a data set as its source holds them: the first source found, unsplit and not resized.

    Args:
      dataset: one of `KNOWN_IMAGES`, a path, or a name of tfds's.
      data_dir: directory with IDX files, NAME.npz or a prepared tfds data set, and then no other place is looked at; None looks
        at tfds's directory, then at the system's, and then has tfds download it. `digits` and paths take None only.

    Returns:
      "train" and, where the source has one, "test" -> images uint8 [N, H, W] or [N, H, W, 3], labels [N]; and the name of the
      source.

    Raises:
      DatasetError: if no source has it, or a file is damaged, or a label is not a class.
    """
    check_images(dataset, 1, data_dir)
    source = find_images(dataset, data_dir, None)
    return _read(dataset, source).splits, source.label


def load_images(
    dataset: str, image_size: int, batch_size: int, data_dir: str | None = None, split_seed: int = 0
) -> tuple[Datasets, ImageInfo]:
    """Load an image data set onto the device, shrunk by area averaging and split four ways.

    A split depends on the examples and the seed alone: not on the source, the order of its files, or `image_size`. Images that
    are not square are made square. The shrunk images are kept in the cache, see `tasks.datasets.cache`.

    Args:
      dataset: one of `KNOWN_IMAGES`, a path, or a name of tfds's.
      image_size: height and width wanted, in pixels, at most those of the source.
      batch_size: B, examples a batch.
      data_dir: see `read_images`.
      split_seed: of the split; where the source has a test split, that stays the test split for every seed.

    Returns:
      `Datasets` whose arrays are "image", uint8 [N, image_size, image_size] (or [..., 3] for colour), and "label", int32 [N]; and
      the `ImageInfo`.

    Raises:
      ValueError: for an unknown name or a size that the data set cannot have.
      DatasetError: a ValueError: if no source has the data set, or a file is damaged.

    Example:
      >>> datasets, info = load_images("digits", image_size=8, batch_size=32)
      >>> datasets.train.arrays["image"].shape, info.num_classes, info.scale
      ((1257, 8, 8), 10, 16)
    """
    check_images(dataset, image_size, data_dir)
    source = find_images(dataset, data_dir, image_size)

    def build(writer: Writer) -> dict[str, int]:
        raw = _read(dataset, source)
        for split, (images, labels) in raw.splits.items():
            if not raw.ready and image_size > min(images.shape[1:3]):
                raise DatasetError(
                    f"{source.label} holds images of {images.shape[1]}x{images.shape[2]}, smaller than image_size {image_size}"
                )
            order = np.arange(len(labels)) if raw.ready else canonical_order(images, labels)
            writer.append(f"{split}_image", (images if raw.ready else area_average(images, image_size))[order])
            writer.append(f"{split}_label", labels[order].astype(np.int32))
        return {"num_classes": raw.num_classes}

    entry = cached("images", {"name": dataset, "image_size": image_size, "source": source.identity()}, build)
    splits = {split: entry.arrays[f"{split}_label"].shape[0] for split in ("train", "test") if f"{split}_label" in entry.arrays}
    held_out = KNOWN[dataset].held_out if dataset in KNOWN else (0.1, 0.1) if "test" in splits else (0.1, 0.1, 0.1)
    parts = []
    for split, count in splits.items():
        images, labels = entry.arrays[f"{split}_image"].read(), entry.arrays[f"{split}_label"].read()
        for index in random_parts(count, held_out if split == "train" else (), split_seed):
            parts.append(ArraySplit({"image": jnp.asarray(images[index]), "label": jnp.asarray(labels[index])}, batch_size))
    scale = KNOWN[dataset].scale if dataset in KNOWN else 255
    shape = entry.arrays["train_image"].shape[1:]
    return Datasets(*parts), ImageInfo(dataset, entry.extra["num_classes"], shape, scale, source.label)
