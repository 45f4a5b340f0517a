"""Metrics of a run: `metrics.jsonl`, one JSON object for each line logged, readable by any tool while the run goes on.

JSON has no NaN and no infinities, and divergence must stay visible, so these are the strings "nan", "inf" and "-inf"; `read`
turns them back into floats.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from lopt.config import parse_json, write_atomically
from lopt.config.errors import LoptError
from lopt.config.files import sync

METRICS_FILE = "metrics.jsonl"


class MetricsError(LoptError, ValueError):
    """A metric that cannot be logged, or a metrics file that cannot be read; the message names the metric or the line."""


_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def _scalar(name: str, value: Any) -> bool | int | float | str | None:
    """A Python value for JSON, from a Python, NumPy or JAX scalar; waits for the device if there is one."""
    if hasattr(value, "item"):
        if getattr(value, "shape", ()) != ():
            raise MetricsError(f"metric '{name}' has shape {value.shape}; log scalars, such as its mean")
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise MetricsError(f"metric '{name}' is of type {type(value).__name__}; log numbers, strings or None")


def _parse(path: Path, data: bytes) -> list[dict[str, Any]]:
    """The records of a file's content; a last line that was cut short by a kill is left out."""
    lines = data.split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if not line and number == len(lines):
            continue
        try:
            record = parse_json(line)
            if not isinstance(record, dict) or type(record.get("outer_step")) is not int:
                raise ValueError("not a JSON object with an integer 'outer_step'")
        except ValueError as error:
            if number == len(lines):
                continue
            raise MetricsError(f"{path}, line {number} is damaged: {error}; repair it or move the file away") from error
        records.append(record)
    return records


def read(path: str | Path) -> list[dict[str, Any]]:
    """The records of a metrics file, in order; "nan", "inf" and "-inf" become floats.

    Args:
      path: the file, or the run directory that holds it.

    Returns:
      One dict for each line: `outer_step` and the metrics logged with it. A half-written last line is left out.

    Raises:
      FileNotFoundError: if there is no such file.
      MetricsError: naming the line that is damaged.
    """
    path = Path(path)
    path = path / METRICS_FILE if path.is_dir() else path
    records = _parse(path, path.read_bytes())
    return [{k: _NOT_FINITE.get(v, v) if isinstance(v, str) else v for k, v in record.items()} for record in records]


class MetricsWriter:
    """Appends to the metrics of a run, flushing every line; `sync` brings them to the disk.

    Opened at outer step s, it first drops the lines of later steps and a half-written last one, atomically: a run that resumes
    from its checkpoint of step s logs those steps again, and the file is what an unbroken run would have written.

    Args:
      run_dir: the run directory; created if missing.
      resume_step: the outer step from which the run goes on; 0 for a new run.

    Attributes:
      missing: outer steps up to `resume_step` of which there is no line, as `gaps` gives them: a power cut has taken them.

    Raises:
      MetricsError: naming the line that is damaged, if there is one before the last.

    Example:
      >>> import tempfile
      >>> run_dir = tempfile.mkdtemp()
      >>> with MetricsWriter(run_dir) as metrics:
      ...     metrics.write({"outer_step": 1, "meta_loss": jnp.inf, "diverged": 2})
      >>> read(run_dir)
      [{'outer_step': 1, 'meta_loss': inf, 'diverged': 2}]
    """

    def __init__(self, run_dir: str | Path, resume_step: int = 0) -> None:
        self.path = Path(run_dir) / METRICS_FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept: list[dict[str, Any]] = []
        if self.path.exists():
            data = self.path.read_bytes()
            kept = [record for record in _parse(self.path, data) if record["outer_step"] <= resume_step]
            content = b"".join(_line(record) for record in kept)
            if content != data:
                write_atomically(self.path, content)
        self.missing = gaps(kept, resume_step)
        self._file = self.path.open("ab")
        try:
            sync(self.path.parent)  # the file's name
        except BaseException:
            self._file.close()
            raise

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Log one line.

        Args:
          metrics: name -> Python, NumPy or JAX scalar, with `outer_step`, the number of outer steps done, among them. JAX scalars
            are copied to the host; nothing of the device is kept.

        Raises:
          MetricsError: naming the metric that is not a scalar, or if there is no `outer_step`.
        """
        record = {name: _scalar(name, value) for name, value in metrics.items()}
        if type(record.get("outer_step")) is not int:
            raise MetricsError(f"'outer_step' is {record.get('outer_step')!r}: each line needs the integer to which it belongs")
        self._file.write(_line(record))
        self._file.flush()

    def sync(self) -> None:
        """Return when all that was written is on the disk: a power cut takes none of it then."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Sync, and close the file."""
        try:
            self.sync()
        finally:
            self._file.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def gaps(records: Sequence[Mapping[str, Any]], last: int) -> list[tuple[int, int]]:
    """The outer steps from 1 to `last` of which there is no record, as pairs of the first and the last of them.

    Example:
      >>> gaps([{"outer_step": step} for step in (1, 2, 3, 6)], last=8)
      [(4, 5), (7, 8)]
    """
    steps = sorted({record["outer_step"] for record in records if record["outer_step"] <= last})
    return [(a + 1, b - 1) for a, b in zip([0, *steps], [*steps, last + 1], strict=True) if b - a > 1]


def _line(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, allow_nan=False) + "\n").encode()
