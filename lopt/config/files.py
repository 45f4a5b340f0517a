"""Files that whoever looks finds whole: after a kill, a power cut, or on a disk that has filled up."""

import errno
import json
import os
from pathlib import Path
from typing import Any


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file so that whoever looks, after a SIGKILL or a power cut too, finds all of the old or all of the new content.

    A kill can leave a hidden file `.NAME.PID.tmp` behind (`remove_leftovers`).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    file = temporary.open("wb")
    try:
        with file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)  # the new name is on the disk only when the directory is


def replace_durably(new: Path, path: Path) -> None:
    """Give what another program has written the name `path`, in one system call, once all of it is on the disk.

    Args:
      new: a file, or a directory with all that is in it, on the same file system.
      path: the name to be; a file of that name is replaced.
    """
    for part in sorted(new.rglob("*"), reverse=True) if new.is_dir() else ():
        sync(part)
    sync(new)
    os.replace(new, path)
    sync(path.parent)


def parse_json(text: str | bytes) -> Any:
    """What JSON holds, whoever wrote it.

    Raises:
      ValueError: if it is none, or nested so deeply that Python gives up.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def make_directory(path: Path) -> None:
    """Make a directory, and those above it that are missing, so that a power cut does not take them with what is written into them."""
    missing = [place for place in (path, *path.parents) if not place.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for place in reversed(missing):
        sync(place.parent)


def sync(path: Path) -> None:
    """Return when a file or a directory is on the disk; a file system that has no fsync of directories is taken at its word."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems answer so for a directory: names are in order there without it, or never.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def remove_leftovers(directory: Path) -> None:
    """Take away what killed calls of `write_atomically` left in a directory that nobody else writes to now."""
    for left in directory.glob(".*.tmp"):
        if left.name.split(".")[-2].isdecimal():
            left.unlink(missing_ok=True)
