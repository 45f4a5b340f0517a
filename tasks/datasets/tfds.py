"""Data sets that TensorFlow Datasets has prepared on disk, read without TensorFlow, or that it prepares now.

The directory is recognised by its layout, `root/name/version/dataset_info.json` (or `root/name/config/version/...`), so that
`tensorflow_datasets` is imported only where there is something to read or to download. Files in the array_record (or parquet)
format are read by its data sources; for tfrecord, its default, those need TensorFlow, so the frames are taken apart here.

References:
  https://www.tensorflow.org/datasets/tfless_tfds and, for the frames, https://www.tensorflow.org/tutorials/load_data/tfrecord
"""

import importlib.util
import os
import re
import socket
import struct
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tasks.datasets.errors import DatasetError

INSTALL = "pip install -e '.[tfds]' in the clone"
_NAME = re.compile(r"(?P<set>[a-zA-Z]\w*(/[\w.+=-]+)?)(:(?P<version>\d+\.\d+\.\d+))?")
_HOST = ("storage.googleapis.com", 443)  # of tfds itself and of many of its data sets


def default_root() -> Path:
    """Where tfds keeps data sets: $TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def is_name(name: str) -> bool:
    """Whether tfds could have a data set of that name: `name`, `name/config`, each also with `:version`."""
    return _NAME.fullmatch(name) is not None


def installed() -> bool:
    """Whether tfds can be imported, without the second or two that this takes."""
    try:
        return importlib.util.find_spec("tensorflow_datasets") is not None
    except ValueError:  # in sys.modules without a spec
        return False


def base_name(name: str) -> str:
    """The name without config and version."""
    return re.split("[/:]", name)[0]


def registered_names() -> list[str]:
    """The data sets that the installed tfds can prepare. Imports it."""
    import tensorflow_datasets  # slow to import, and an extra

    return tensorflow_datasets.list_builders(with_community_datasets=False)


def find_prepared(root: Path, name: str) -> Path | None:
    """The directory of the newest prepared version of a data set below `root`, or None.

    Args:
      root: as `default_root`.
      name: as tfds writes it. Without a config, where only configs are prepared, there must be one alone.

    Raises:
      DatasetError: if several configs are prepared and the name says none of them.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    pattern = match["set"]
    found = _versions(root, f"{pattern}/*")
    if not found and "/" not in pattern:
        found = _versions(root, f"{pattern}/*/*")
        if len(configs := {path.parent.name for path in found}) > 1:
            names = ", ".join(f"{pattern}/{config}" for config in sorted(configs))
            raise DatasetError(f"{root} holds several configs of '{pattern}'; name the one you want: {names}")
    if match["version"] is not None:
        return next((path for path in found if path.name == match["version"]), None)
    return max(found, key=lambda path: tuple(map(int, path.name.split("."))), default=None)


def _versions(root: Path, pattern: str) -> list[Path]:
    paths = [path.parent for path in root.glob(f"{pattern}/dataset_info.json")]
    # Leaves out unfinished preparations, `incomplete.XYZ_3.0.1`.
    return [path for path in paths if re.fullmatch(r"[0-9]+(\.[0-9]+)*", path.name)]


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


def open_prepared(directory: Path) -> Any:
    """The builder that reads a prepared data set.

    Raises:
      DatasetError: if tfds is not installed, or the directory is none of its.
    """
    try:
        import tensorflow_datasets  # slow to import, and an extra
    except ImportError as error:
        raise DatasetError(f"{directory} holds a tfds data set, but tfds cannot be imported ({error}): {INSTALL}") from error
    try:
        return tensorflow_datasets.builder_from_directory(directory)
    except Exception as error:  # what tfds raises depends on what is wrong
        raise DatasetError(f"the tfds data set in {directory} cannot be read: {error}; prepare it again") from error


def examples(builder: Any, split: str) -> Iterator[dict[str, Any]]:
    """Every example of a split, in the order of its files, as numpy values.

    Raises:
      DatasetError: naming split and directory, if there is no such split, or a file is gone, damaged or cut short.
    """
    what = f"the '{split}' split of the tfds data set in {builder.data_dir}"
    if split not in builder.info.splits:
        raise DatasetError(f"{what} is missing: it has {', '.join(map(repr, builder.info.splits)) or 'no splits at all'}")
    count, expected = 0, builder.info.splits[split].num_examples
    try:
        for example in _records(builder, split):
            count += 1
            yield example
    except DatasetError:
        raise
    except Exception as error:  # what the readers raise depends on the format and its version
        raise DatasetError(f"{what} cannot be read: {error}; prepare it again") from error
    if count != expected:
        raise DatasetError(f"{what} holds {count} examples, but its info says {expected}; prepare it again")


def _records(builder: Any, split: str) -> Iterator[dict[str, Any]]:
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


def online() -> bool:
    """Whether a download can be tried; tfds itself tries for minutes before it says that there is no network."""
    if urllib.request.getproxies():
        return True
    try:
        socket.create_connection(_HOST, timeout=5).close()
    except OSError:
        return False
    return True


def download(name: str, check: Callable[[Any], object]) -> Path:
    """Let tfds download a data set and prepare it in `default_root()` as array_record.

    Args:
      name: as tfds writes it.
      check: called with the builder before anything is downloaded; raises `DatasetError` if the set is not of the kind wanted.

    Returns:
      The directory of the version that was prepared.

    Raises:
      DatasetError: with the reason, such as no network.
    """
    if not installed():
        raise DatasetError("tensorflow_datasets is not installed")
    try:
        import tensorflow_datasets

        builder = tensorflow_datasets.builder(name, data_dir=default_root(), file_format="array_record")
        check(builder)
        if not online():
            raise DatasetError(f"there is no network: {_HOST[0]} cannot be reached")
        config = tensorflow_datasets.download.DownloadConfig(try_download_gcs=False)
        builder.download_and_prepare(download_config=config)
    except DatasetError:
        raise
    except Exception as error:  # of the network, of the original's format, of a library that this set needs
        raise DatasetError(
            f"tfds failed with {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        ) from error
    return Path(builder.data_dir)
