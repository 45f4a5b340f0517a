"""Where a data set lies: a path, a given directory, tfds's directory, the system's, or a download; found without reading it."""

import dataclasses
import difflib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from tasks.datasets import tfds
from tasks.datasets.cache import fingerprint
from tasks.datasets.errors import DatasetError

Content = TypeVar("Content", covariant=True)


@dataclasses.dataclass(frozen=True)
class Source(Generic[Content]):
    """A data set that was found and not yet read.

    Attributes:
      label: what logs and errors call it: a file, a directory, a package.
      read: reads it, which may take long and import much.
      files: what it is read from; if one changes, so may the data.
      version: of a source that is not files of its own.
    """

    label: str
    read: Callable[[], Content]
    files: tuple[Path, ...] = ()
    version: str = ""

    def identity(self) -> dict[str, Any]:
        """What the key of a cache entry says of the source."""
        return {"files": fingerprint(self.files), "version": self.version}


def is_path(name: str) -> bool:
    """Whether a data set's name is a path: it starts like one (`/`, `.`, `~`), it is there, or tfds has no such names.

    Example:
      >>> is_path("./corpus.txt"), is_path("corpus.txt"), is_path("cifar10_corrupted/brightness_1")
      (True, True, False)
    """
    return name.startswith(("/", ".", "~")) or Path(name).exists() or not tfds.is_name(name)


def check_name(kind: str, name: str, known: Sequence[str], data_dir: str | None = None) -> None:
    """Raise unless there may be such a data set: a known name, a path that exists, or a name of tfds's.

    tfds is imported only for a name that is none of the others and that nobody has prepared.

    Args:
      kind: of data set, `image` or `text`, for the message.
      name: as the user gave it.
      known: names that need no look-up.
      data_dir: where it would be looked for; a data set of the user's own may have any name there.

    Raises:
      ValueError: naming the known ones, and the nearest of tfds's.
    """
    if name in known or (is_path(name) and Path(name).expanduser().exists()):
        return
    if tfds.is_name(name):
        if any(tfds.find_prepared(root, name) for root in (tfds.default_root(), *([Path(data_dir)] if data_dir else []))):
            return
        if data_dir is not None or (tfds.installed() and tfds.base_name(name) in tfds.registered_names()):
            return
    reasons = [f"there is no file or directory {Path(name).expanduser()}"]
    if tfds.is_name(name):
        close = difflib.get_close_matches(name, tfds.registered_names(), n=3) if tfds.installed() else []
        has = f", which has {', '.join(close)}" if close else ""
        reasons.append(f"tfds does not know it{has}" if tfds.installed() else f"the names of tfds need {tfds.INSTALL}")
    raise ValueError(f"unknown {kind} data set '{name}'; the known ones are {', '.join(known)}; {', and '.join(reasons)}")


def system_directories(name: str) -> list[Path]:
    """Where a system keeps a data set: `datasets/NAME` in $XDG_DATA_HOME, $XDG_DATA_DIRS and /usr/share, in this order."""
    home = os.environ.get("XDG_DATA_HOME") or str(Path("~/.local/share").expanduser())
    shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    roots = [Path(root) for root in (home, *shared.split(":"), "/usr/share") if os.path.isabs(root)]
    return [root / "datasets" / name.replace("_", "-") for root in dict.fromkeys(roots)]


@dataclasses.dataclass(frozen=True)
class Reader(Generic[Content]):
    """How one kind of data set is recognised and read.

    Attributes:
      plain: `plain(directory)` finds it as ordinary files, or gives None.
      prepared: `prepared(directory)` of a version that tfds has prepared.
      check: `check(builder)` raises `DatasetError` if a data set of tfds's is not of this kind.
      files: the ordinary files, for messages.
      package: the Debian package that has them.
    """

    plain: Callable[[Path], Source[Content] | None]
    prepared: Callable[[Path], Source[Content]]
    check: Callable[[Any], object]
    files: str
    package: str | None = None


def locate(name: str, data_dir: str | None, reader: Reader[Content]) -> Source[Content]:
    """The first source that has a data set: a given directory alone, or tfds's, the system's, and then a download by tfds.

    Raises:
      DatasetError: if none has it, with the ways to get it.
    """
    if data_dir is not None:
        directory = Path(data_dir).expanduser()
        source = _in_directory(directory, name, reader)
        if source is None:
            raise DatasetError(
                f"data_dir {directory} {'holds' if directory.is_dir() else 'is not a directory with'} neither {reader.files} "
                f"nor a prepared tfds data set {name}/VERSION/dataset_info.json"
            )
        return source
    state = f"{tfds.default_root()} has none"
    prepared = tfds.find_prepared(tfds.default_root(), name)
    if prepared is not None:
        if tfds.installed():
            return reader.prepared(prepared)
        state = f"there is one in {prepared}, but tfds cannot be imported"
    for directory in system_directories(name):
        source = reader.plain(directory)
        if source is not None:
            return source
    try:
        return reader.prepared(tfds.download(name, reader.check))
    except DatasetError as error:
        reason = str(error)
    package = f"apt-get install {reader.package}, or " if reader.package else ""
    raise DatasetError(
        f"the data set '{name}' was not found, and it cannot be downloaded: {reason}. Do one of these:\n"
        f"  - give a directory (data_dir) with {reader.files};\n"
        f"  - {tfds.INSTALL}, and prepare it in such a directory or in $TFDS_DATA_DIR, on a machine with a network (some sets "
        f"need TensorFlow for this once): tfds build {name} --file_format=array_record ({state});\n"
        f"  - {package}put {reader.files} into one of {', '.join(map(str, system_directories(name)))}."
    )


def _in_directory(directory: Path, name: str, reader: Reader[Content]) -> Source[Content] | None:
    source = reader.plain(directory)
    if source is None and (prepared := tfds.find_prepared(directory, name)) is not None:
        return reader.prepared(prepared)
    return source
