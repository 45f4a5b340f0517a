"""Image data sets that TensorFlow Datasets has prepared on disk, read without TensorFlow.

Nothing is downloaded or prepared here. The directory is recognised by its layout, `root/name/version/dataset_info.json`, so
that `tensorflow_datasets` is imported only where there is something to read. Files in the array_record (or parquet) format are
read by its data sources; for tfrecord, its default, those need TensorFlow, so the frames are taken apart here.

References:
  https://www.tensorflow.org/datasets/tfless_tfds and, for the frames, https://www.tensorflow.org/tutorials/load_data/tfrecord
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tasks.datasets.errors import DatasetError
from tasks.datasets.idx import Examples

INSTALL = "pip install 'lopt[tfds]'"


def default_root() -> Path:
    """Where tfds keeps data sets: $TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def find_prepared(root: Path, name: str) -> Path | None:
    """The directory of the newest prepared version of a data set below `root`, or None."""
    versions = {}
    for path in root.glob(f"{name}/*/dataset_info.json"):
        numbers = path.parent.name.split(".")
        if all(number.isdecimal() for number in numbers):  # leaves out unfinished preparations, `incomplete.XYZ_3.0.1`
            versions[tuple(map(int, numbers))] = path.parent
    return versions[max(versions)] if versions else None


def tfrecord_frames(path: Path) -> Iterator[bytes]:
    """The records of a tfrecord file: 8 bytes of length (little-endian), 4 of checksum, the record, 4 of checksum.

    Raises:
      DatasetError: naming the file, if it ends inside a record.
    """
    content = path.read_bytes()
    position = 0
    while position < len(content):
        start = position + 12
        length = struct.unpack_from("<Q", content, position)[0] if start <= len(content) else 0
        if start + length + 4 > len(content):
            raise DatasetError(f"{path} ends inside the record that starts at byte {position}; prepare the data set again")
        yield content[start : start + length]
        position = start + length + 4


def _examples(builder: Any, split: str) -> Iterator[dict[str, Any]]:
    file_format = builder.info.file_format.value
    if file_format in ("array_record", "parquet"):
        source = builder.as_data_source(split)
        for start in range(0, len(source), 4096):  # in bulk: one record at a time is a fifth slower
            yield from source.__getitems__(range(start, min(start + 4096, len(source))))
    elif file_format == "tfrecord":
        for path in builder.info.splits[split].filepaths:
            for record in tfrecord_frames(Path(path)):
                yield builder.info.features.deserialize_example_np(record)
    else:
        raise DatasetError(
            f"{builder.data_dir} is in the format {file_format}, which cannot be read here; "
            "prepare it with --file_format=array_record"
        )


def load_prepared(directory: Path, image_shape: tuple[int, int]) -> dict[str, Examples]:
    """Read the train and test splits of a prepared data set whose examples are `image` and `label`.

    Args:
      directory: of one version, as `find_prepared` gives it.
      image_shape: (H, W) that the images must have, in pixels; one channel.

    Returns:
      "train" and "test" -> images uint8 [N, H, W], labels uint8 [N].

    Raises:
      ImportError: if tensorflow_datasets is not installed.
      DatasetError: naming the directory, if it cannot be read or holds something else.
    """
    import tensorflow_datasets  # slow to import, and an extra

    splits = {}
    for split in ("train", "test"):
        what = f"the '{split}' split of the tfds data set in {directory}"
        try:
            builder = tensorflow_datasets.builder_from_directory(directory)
            examples, expected = list(_examples(builder, split)), builder.info.splits[split].num_examples
        except DatasetError:
            raise
        except Exception as error:  # what the readers raise depends on the format and its version
            raise DatasetError(f"{what} cannot be read: {error}") from error
        if len(examples) != expected:
            raise DatasetError(f"{what} holds {len(examples)} examples, but its info says {expected}; prepare it again")
        shapes = {np.shape(example.get("image", ())) for example in examples}
        if shapes != {(*image_shape, 1)}:
            raise DatasetError(f"{what} holds images of shapes {sorted(shapes)}, where {(*image_shape, 1)} is expected")
        images = np.stack([example["image"][..., 0] for example in examples])
        splits[split] = (images.astype(np.uint8, casting="safe"), np.array([example["label"] for example in examples], np.uint8))
    return splits
