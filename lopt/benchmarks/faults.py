"""Faults at a chosen moment: a power cut, or a disk that is full, at any of the calls by which files come to the disk.

A power cut is simulated: what a directory would hold after it is worked out from the calls that were made. A file holds what it held
when it was last synced, and perhaps a part of what was written since; a directory has the names that it had when it was last synced, or
those that it has now: file systems may do either.
"""

import errno
import itertools
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_CALLS = ("fsync", "replace", "rename", "unlink", "mkdir")


class PowerCut(BaseException):
    """The moment of a power cut; nothing that happens after it reaches the disk."""


@contextmanager
def at_call(number: int, strike: Callable[[], None], lasting: bool = False) -> Iterator[Callable[[], int]]:
    """While inside, `strike` is called before the n-th of the calls that change what is on the disk, from 0; if lasting, before all later.

    Yields:
      A function that tells how many calls there were.
    """
    count = 0

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == number + 1 or (lasting and count > number):
                strike()
            return function(*args, **kwargs)

        return call

    with _replaced({name: watched(getattr(os, name)) for name in _CALLS}):
        yield lambda: count


def full_disk() -> None:
    """Raise what a call raises on a disk that is full."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Disk:
    """What of a directory, and of all below it, has come to the disk; what is there now has.

    Args:
      root: the directory.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._numbers = itertools.count()
        self._synced: dict[int, bytes] = {}  # file -> its content when it was last synced
        self._of: dict[int, int] = {}  # inode -> file: inodes are used again, files are not
        self._names: dict[Path, dict[str, int]] = {}  # directory -> its names when it was last synced
        for directory in (self._root, *filter(Path.is_dir, self._root.rglob("*"))):
            for path in filter(Path.is_file, directory.iterdir()):
                self._synced[self._file(path.stat().st_ino)] = path.read_bytes()
            self._keep_names(directory)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While inside, calls that bring something to the disk are noted."""
        fsync, replace, rename, unlink = os.fsync, os.replace, os.rename, os.unlink

        def noting_fsync(descriptor: Any) -> None:
            fsync(descriptor)
            number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
            path = Path(os.readlink(f"/proc/self/fd/{number}"))
            if path.is_dir():
                self._keep_names(path)
            elif path.is_relative_to(self._root):
                self._synced[self._file(os.fstat(number).st_ino)] = path.read_bytes()

        def noting_move(move: Callable[..., None]) -> Callable[..., None]:
            def moved(source: Any, target: Any, **kwargs: Any) -> None:
                self._forget(target)
                move(source, target, **kwargs)

            return moved

        def noting_unlink(path: Any, **kwargs: Any) -> None:
            self._forget(path)
            unlink(path, **kwargs)

        changed = {"fsync": noting_fsync, "replace": noting_move(replace), "rename": noting_move(rename), "unlink": noting_unlink}
        with _replaced(changed):
            yield

    def image(self, place: Path, chance: random.Random) -> None:
        """Write what a power cut would leave now; `chance` decides what the file system had got to."""
        self._write(self._root, place, chance)

    def _write(self, directory: Path, place: Path, chance: random.Random) -> None:
        place.mkdir(parents=True)
        names = self._names.get(directory, {})
        if directory.is_dir() and chance.random() < 0.5:
            names = {path.name: self._file(path.stat().st_ino) for path in directory.iterdir()}
        for name, file in names.items():
            path = directory / name
            if path.is_dir():
                self._write(path, place / name, chance)
            else:
                (place / name).write_bytes(self._content(path, file, chance))

    def _content(self, path: Path, file: int, chance: random.Random) -> bytes:
        synced = self._synced.get(file, b"")
        if not path.is_file() or self._of.get(path.stat().st_ino) != file:
            return synced
        now = path.read_bytes()
        grown = now[: chance.randint(len(synced), len(now))] if now.startswith(synced) else synced
        return grown if chance.random() < 0.5 else synced

    def _file(self, inode: int) -> int:
        if inode not in self._of:
            self._of[inode] = next(self._numbers)
        return self._of[inode]

    def _forget(self, path: Any) -> None:
        """The inode of a file that is about to go may be that of another soon."""
        if os.path.isfile(path) and os.stat(path).st_nlink == 1:
            self._of.pop(os.stat(path).st_ino, None)

    def _keep_names(self, directory: Path) -> None:
        directory = directory.resolve()
        if directory.is_relative_to(self._root):
            self._names[directory] = {path.name: self._file(path.stat().st_ino) for path in directory.iterdir()}


@contextmanager
def _replaced(functions: dict[str, Callable[..., Any]]) -> Iterator[None]:
    before = {name: getattr(os, name) for name in functions}
    for name, function in functions.items():
        setattr(os, name, function)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(os, name, function)
