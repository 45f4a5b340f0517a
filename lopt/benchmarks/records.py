"""What benchmarks have measured, kept as lines of JSON: one file a benchmark, one line a record."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lopt.config import ConfigError, parse_json, write_atomically


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add a line to a file of records, which is made if need be; who looks sees all of the line or nothing of it.

    Raises:
      ValueError: if the record holds what JSON cannot.
      OSError: if the file cannot be written.
    """
    line = json.dumps(dict(record), allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines() if path.exists() else []
    write_atomically(path, "".join(f"{line}\n" for line in [*lines, line]).encode())


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a file, oldest first.

    Raises:
      FileNotFoundError: if there is no such file.
      ConfigError: naming the line that is not a JSON object.
    """
    records = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            record = parse_json(line)
        except ValueError as error:
            raise ConfigError(f"{path}, line {number} is not JSON: {error}; repair or delete it") from error
        if not isinstance(record, dict):
            raise ConfigError(f"{path}, line {number} is not a JSON object; repair or delete it")
        records.append(record)
    return records
