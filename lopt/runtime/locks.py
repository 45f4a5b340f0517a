"""Locks on directories, so that two starts do not write one run: held by the process, and gone with it, however it ends."""

import errno
import fcntl
import json
import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from lopt.config.errors import LoptError

LOCK_FILE = ".lock"  # of a run directory
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # what a file system without locks answers


class BusyError(LoptError, RuntimeError):
    """Another process works on the same directory; the message says which."""


@contextmanager
def only_process(path: str | Path, what: str) -> Iterator[str]:
    """While inside, this is the only process that is inside for this file.

    The system lets go of the lock when the process ends, by a SIGKILL too; the file itself stays. On a file system without locks there
    is a warning instead.

    Args:
      path: of the lock's file; its directory exists.
      what: it stands for, for the message.

    Yields:
      What the file says of the holder: host, process and time, as JSON.

    Raises:
      BusyError: naming host, process and time of the other.
      OSError: if the file cannot be written.
    """
    path = Path(path)
    about = {"host": platform.node(), "process": os.getpid(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
    text = json.dumps(about)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(f"{what} is in use by {_holder(file.read())}: wait for it, or stop it") from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            warnings.warn(f"{path} cannot be locked ({error.strerror}): see that nothing else works on {what}", stacklevel=4)
        file.truncate(0)
        file.write(text)
        file.flush()
        try:
            yield text
        finally:
            file.truncate(0)  # of a holder that is done nothing is told: run directories are handed on


def _holder(text: str) -> str:
    try:
        about = json.loads(text)
        return f"process {about['process']} on {about['host']}, since {about['since']}"
    except (ValueError, TypeError, KeyError):  # it has taken the lock and not said yet who it is
        return "another process"
