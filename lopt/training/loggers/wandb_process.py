"""The process in which W&B lives: reads lines of JSON from the training process, `python -m lopt.training.loggers.wandb_process`.

The first line says what is logged, each further one holds the metrics of an outer step, and the last one says how the run ended; if
there is none, the training process was killed. What happens here is told in lines of JSON on standard output.

A start first asks what W&B holds, its server or its files, takes what it lacks from metrics.jsonl, and leaves out what it has: a run
that is resumed from its checkpoint logs some steps again, and W&B can forget none.
"""

import fcntl
import json
import os
import secrets
import signal
import struct
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lopt.config import write_atomically
from lopt.training.loggers.base import LoggerConfig, Opening, missing

RUN_ID_FILE = "run_id"
LOCK_FILE = "lock"
_ID_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
_SERVER_SECONDS = 60.0  # to wait at most for W&B's server at the start and at the end
_ALIVE_SECONDS = 1.0  # between two signs of life
_CALL_SECONDS = 180  # in which a call of W&B's returns unless it hangs


class WandbRun:
    """A W&B run as a logger.

    Args:
      config: what the W&B run is called, and its mode.
      start: of the run.
      warn: told if W&B cannot be reached online; the run is then logged offline.

    Attributes:
      held: the last outer step that W&B has.
    """

    def __init__(self, config: LoggerConfig, start: Opening, warn: Callable[[str], None]) -> None:
        directory = start.run_dir / "wandb"
        run_id = _run_id(directory / RUN_ID_FILE)
        held = max(map(last_step, directory.glob(f"*run-*-{run_id}/*.wandb")), default=0)
        name = config.wandb_name or (None if held else start.run_dir.name)  # a run that the user has renamed keeps its name
        mode = config.wandb_mode
        try:
            self._run = _init(config, start, run_id, name, mode)
        except Exception as error:
            if mode == "offline":
                raise
            traceback.print_exc()
            warn(
                f"W&B could not be reached, the run is logged into '{directory}' instead; `wandb sync {directory}/offline-run-*` "
                f"uploads that ({type(error).__name__}: {error})"
            )
            import wandb

            wandb.teardown()  # or the run that could not be opened would stay in use
            mode = "offline"
            self._run = _init(config, start, run_id, name, mode)
        if mode == "online":
            held = self._run.starting_step - 1 if self._run.resumed else 0
        self.held = held

    def write(self, step: int, values: Any) -> None:
        """Log the values of an outer step, unless W&B has them."""
        if step > self.held:
            self._run.log(dict(values), step=step)

    def close(self, failed: bool) -> None:
        """Wait until W&B has written, or uploaded, everything."""
        self._run.finish(exit_code=int(failed))


def _run_id(path: Path) -> str:
    """The id of the W&B run that belongs to a run directory, made at its first start."""
    if not path.exists():
        write_atomically(path, "".join(secrets.choice(_ID_ALPHABET) for _ in range(8)).encode())
    return path.read_text()


def _init(config: LoggerConfig, start: Opening, run_id: str, name: str | None, mode: str) -> Any:
    import wandb  # takes a second

    settings: Any = {
        "silent": True,
        "console": "off",
        "disable_code": True,
        "disable_git": True,  # the environment has the commit
        "host": "",
        "symlink": False,
        "x_disable_meta": True,
        "x_save_requirements": False,
        "init_timeout": _SERVER_SECONDS,
        "finish_timeout": _SERVER_SECONDS,
    }
    return wandb.init(
        mode=mode,  # pyright: ignore[reportArgumentType]
        project=config.wandb_project,
        entity=config.wandb_entity,
        name=name,
        dir=str(start.run_dir),
        id=run_id,
        resume="allow",
        config={**start.experiment, "environment": start.environment},
        allow_val_change=True,
        settings=wandb.Settings(**settings),
    )


_HEADER, _BLOCK = 7, 32768


def records(data: bytes) -> Iterator[bytes]:
    """The whole records of a .wandb file: after 7 bytes of its own, a log in LevelDB's format, which a kill may have cut short.

    A block of 32 KiB holds fragments: checksum (4 bytes), length (2), type (1; all of a record, or its first, middle or last part),
    data. What is left of a block when it cannot hold a header is padding.
    """
    position, parts = _HEADER, b""
    while position + _HEADER <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < _HEADER:
            position += left
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, position)
        fragment = data[position + _HEADER : position + _HEADER + length]
        if len(fragment) < length or zlib.crc32(fragment, zlib.crc32(bytes([kind]))) != checksum:
            return
        whole, first, _, last = range(1, 5)
        parts = fragment if kind in (whole, first) else parts + fragment
        if kind in (whole, last):
            yield parts
        position += _HEADER + length


def last_step(path: Path) -> int:
    """The last outer step in a .wandb file; 0 if there is none."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]  generated

    for data in reversed(list(records(path.read_bytes()))):
        record = Record.FromString(data)
        if record.HasField("history"):
            return record.history.step.num
    return 0


def _wait_for_earlier(path: Path) -> None:
    """Hold a lock until this process ends: that of a run that was killed a moment ago may still be writing."""
    lock = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:  # some file systems have no locks
        traceback.print_exc()


@contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    """End this process if what is inside hangs: the training process may be gone, and the next one waits for the lock."""
    signal.alarm(seconds)
    yield
    signal.alarm(0)


def follow(lines: Iterator[bytes], warn: Callable[[str], None]) -> None:
    """Log what the lines say until they end.

    Args:
      lines: from the training process.
      warn: told what the user should know.
    """
    first: Any = json.loads(next(lines))
    config = LoggerConfig(**{**first["config"], "logger": ("wandb",)})
    start = Opening(**{**first["start"], "run_dir": Path(first["start"]["run_dir"])})
    _wait_for_earlier(start.run_dir / "wandb" / LOCK_FILE)
    with _at_most(_CALL_SECONDS):
        run = WandbRun(config, start, warn)
    for step, values in missing(start, run.held):
        with _at_most(_CALL_SECONDS):
            run.write(step, values)
    failed = True
    for line in lines:
        message = json.loads(line)
        if "failed" in message:
            failed = message["failed"]
            break
        with _at_most(_CALL_SECONDS):
            run.write(message["step"], message["values"])
    signal.alarm(_CALL_SECONDS)  # for what W&B does when Python exits too
    run.close(failed)


def main() -> None:
    """Follow the training process; it alone says when to stop."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    told = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what else is printed goes into the log file

    speaking = threading.Lock()

    def tell(**message: Any) -> bool:
        try:
            with speaking:
                print(json.dumps(message), file=told)
        except BrokenPipeError:
            traceback.print_exc()
            return False
        return True

    def live() -> None:
        while tell(alive=True):
            time.sleep(_ALIVE_SECONDS)

    def warn(text: str) -> None:
        tell(warning=text)

    threading.Thread(target=live, daemon=True).start()

    try:
        follow(iter(sys.stdin.buffer), warn)
    except Exception as error:
        traceback.print_exc()
        tell(error=f"{type(error).__name__}: {error}")
        sys.exit(1)


if __name__ == "__main__":
    main()
