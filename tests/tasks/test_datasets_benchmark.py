"""The data benchmark is kept alive: it runs for seconds, its record is complete, and no time is asserted."""

import json
import os

import numpy as np
import pytest

from lopt.runtime.environment import stamp
from scripts import benchmark
from tasks.datasets.benchmark import data_cost

FIELDS = {"source", "task", "batch_size", "examples", "device_mb", "load_s", "load_cached_s", "examples_per_s"} | {
    "batch_us",
    "step_us",
    "data_share",
}


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LOPT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_images_as_a_json_line(cache, capsys):
    benchmark.main(["data", "--sources", "digits", "--steps", "2"])
    (line,) = capsys.readouterr().out.splitlines()
    record = json.loads(line)
    assert set(record) == FIELDS | {"benchmark"} | set(stamp())
    assert (record["benchmark"], record["source"], record["batch_size"]) == ("data", "digits", 128)
    assert (record["examples"], record["device_mb"]) == (1257, 0.12)
    assert all(record[name] > 0 for name in FIELDS - {"source", "task"})
    assert os.environ["LOPT_CACHE_DIR"] == str(cache)
    assert not cache.exists()  # it has an empty one of its own


def test_a_text_that_streams(cache, tmp_path, monkeypatch):
    monkeypatch.delenv("LOPT_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "corpus.txt"
    path.write_bytes(np.random.default_rng(0).bytes(3 << 20))
    monkeypatch.setattr("tasks.settings.load_text", _streaming)
    record = data_cost(str(path), steps=2, repeats=1)
    assert set(record) == FIELDS | {"part_ms"}
    assert record["examples"] == (1 << 20) - 16
    assert "LOPT_CACHE_DIR" not in os.environ


def _streaming(*args, **options):
    from tasks.datasets import load_text

    return load_text(*args, **options, device_bytes=1 << 20)


def test_no_steps_is_an_error(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["data", "--steps", "0"])
    assert "--steps: must be at least 1, got 0" in capsys.readouterr().err
