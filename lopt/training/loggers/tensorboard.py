"""TensorBoard: event files in RUN/tensorboard, shown by `tensorboard --logdir RUN`.

Each start of a run writes a file of its own. It begins by telling the reader to forget what earlier files hold of the steps that
follow, because a killed process wrote them, and this one will write them again.

The files are written here and at once, through the package's own messages and record format: its writer would queue them for a
thread, whose errors no one sees and whose last records a SIGKILL takes.
"""

import json
import re
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]  generated
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]  generated
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from lopt.training.loggers.base import Opening, missing

DIRECTORY = "tensorboard"


class TensorBoardLogger:
    """A curve for each metric, and config and environment as text."""

    def __init__(self, start: Opening) -> None:
        directory = start.run_dir / DIRECTORY
        directory.mkdir(parents=True, exist_ok=True)
        earlier = sorted(directory.glob("events.out.tfevents.*"))
        held = min(_last_step(earlier[-1]), start.resume_step) if earlier else 0
        path = directory / _name(time.time_ns(), earlier[-1].name if earlier else "")
        self._time = 0.0
        self._writer = RecordWriter(path.open("xb"))
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=held + 1, session_log=SessionLog(status=SessionLog.START)))
        for step, values in missing(start, held):
            self.write(step, values)
        for name, content in (("config", start.experiment), ("environment", start.environment)):
            self._write(Event(step=start.resume_step, summary=text_pb(name, _markdown(content))))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append the values to the event file."""
        curves = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(Event(step=step, summary=Summary(value=curves)))

    def close(self, failed: bool) -> None:
        """Close the event file."""
        del failed  # TensorBoard knows no such thing
        self._writer.close()

    def _write(self, event: Event) -> None:
        event.wall_time = self._time = max(time.time(), self._time)  # a clock may go back; readers take that for an older run
        self._writer.write(event.SerializeToString())
        self._writer.flush()


_NAME = re.compile(r"events\.out\.tfevents\.(\d{10})\.(\d{9})$")


def _name(now: int, last: str) -> str:
    """A name after the last in the order of names, in which readers take the files, though the clock may have gone back since."""
    match = _NAME.match(last)
    if match:
        now = max(now, int(match[1]) * 10**9 + int(match[2]) + 1)
    seconds, nanoseconds = divmod(now, 10**9)
    return f"events.out.tfevents.{seconds}.{nanoseconds:09}"


def _markdown(content: Mapping[str, Any]) -> str:
    return f"```json\n{json.dumps(content, indent=2)}\n```"


def _records(data: bytes) -> Iterator[bytes]:
    """The records of an event file: each has its length (8 bytes), a checksum, the record, a checksum (4 bytes each)."""
    start = 12
    while start <= len(data):
        (length,) = struct.unpack_from("<Q", data, start - 12)
        if start + length + 4 > len(data):  # cut short
            return
        yield data[start : start + length]
        start += length + 16


def _last_step(path: Path) -> int:
    """The step up to which readers hold the metrics once they have read this file, the newest."""
    last = 0
    for record in _records(path.read_bytes()):
        event = Event.FromString(record)
        if event.HasField("session_log"):
            last = event.step - 1
        elif event.HasField("summary"):
            last = event.step
    return last
