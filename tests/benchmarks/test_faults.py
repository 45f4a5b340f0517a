"""Power cuts are worked out as file systems may do them, and a part of what is counted in an hour."""

import dataclasses
import os
import random
from pathlib import Path

import pytest

from lopt.benchmarks.faults import Disk, PowerCut, at_call, full_disk
from lopt.benchmarks.options import KINDS
from lopt.benchmarks.reliability import command, difference, reliability
from lopt.config import load_file, write_atomically
from lopt.training.checkpoint import CheckpointError
from lopt.training.held_out import HeldOutConfig
from lopt.training.trainer import meta_train
from tests.comparison.toy import EXPERIMENT

ROOT = Path(__file__).resolve().parents[2]


def images(disk, tmp_path, count=40):
    """What files hold after so many power cuts: name -> the contents that were seen; None: it was not there."""
    seen = {}
    for number in range(count):
        place = tmp_path / f"image{number}"
        disk.image(place, random.Random(number))
        found = {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}
        for name in {*seen, *found}:
            seen.setdefault(name, set()).add(found.get(name))
    return seen


def test_a_power_cut_leaves_what_was_synced(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "old").write_bytes(b"old")
    disk = Disk(root)
    with disk.watched():
        write_atomically(root / "durable", b"durable")
        (root / "renamed.tmp").write_bytes(b"never synced")
        os.replace(root / "renamed.tmp", root / "renamed")
        with (root / "log").open("wb") as log:
            log.write(b"synced ")
            log.flush()
            os.fsync(log.fileno())
            log.write(b"not")
            log.flush()
            found = images(disk, tmp_path)
    assert found["old"] == {b"old"}
    assert found["durable"] == {b"durable"}
    assert None in found["renamed"]
    assert b"" in found["renamed"], "a rename may come to the disk before the content does"
    assert {None, b"synced ", b"synced not"} <= found["log"]
    assert all(content is None or b"synced not".startswith(content) for content in found["log"])


def test_a_name_of_before_leads_to_the_content_of_before(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    write_atomically(root / "file", b"one")
    disk = Disk(root)
    with disk.watched():
        (root / "new").write_bytes(b"two")
        with (root / "new").open("rb") as file:
            os.fsync(file.fileno())
        os.replace(root / "new", root / "file")
        assert images(disk, tmp_path)["file"] == {b"one", b"two"}


def test_faults_strike_at_their_call(tmp_path):
    with at_call(-1, full_disk) as calls:
        write_atomically(tmp_path / "file", b"one")
    assert calls() == 3  # the file, its name, the directory
    for number in range(2):
        with at_call(number, full_disk), pytest.raises(OSError, match="No space left"):
            write_atomically(tmp_path / "file", b"two")
        assert [path.name for path in tmp_path.iterdir()] == ["file"]
        assert (tmp_path / "file").read_bytes() == b"one"
    with at_call(0, full_disk, lasting=True):
        for _ in range(2):
            with pytest.raises(OSError, match="No space left"):
                write_atomically(tmp_path / "other", b"two")
    assert issubclass(PowerCut, BaseException)
    assert not issubclass(PowerCut, Exception)


@pytest.mark.slow
def test_nothing_is_lost_in_this_process():
    """Theta, particles, the best theta and metrics, bit for bit."""
    kinds = ["power cuts", "full disks", "damaged files"]
    found = list(reliability(EXPERIMENT, [], kinds, attempts=6, seed=1))
    assert [record["kind"] for record in found] == kinds
    for record in found:
        assert record["attempts"] == record["same"] + record["told"] + record["lost"] == 6
        assert record["lost"] == 0, record


@pytest.mark.slow
def test_nothing_is_lost_in_processes_of_their_own():
    config = ROOT / "configs" / "smoke.py"
    script = command(ROOT / "scripts" / "meta_train.py", config)
    for record in reliability(load_file(config), script, ["kills", "signals", "processes"], attempts=1):
        assert (record["same"], record["lost"]) == (1, 0), record
    assert set(KINDS) == {"kills", "signals", "processes", "power cuts", "full disks", "damaged files"}


def test_what_differs_is_named(tmp_path):
    experiment = dataclasses.replace(EXPERIMENT, held_out=HeldOutConfig(), outer_steps=2)
    for name in ("one", "two"):
        meta_train(experiment, tmp_path / name, progress=False)
    assert difference(tmp_path / "one", tmp_path / "two") == ""
    lines = (tmp_path / "two" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "one" / "metrics.jsonl").write_text(lines[0])
    assert "1 lines of metrics" in difference(tmp_path / "one", tmp_path / "two")
    (tmp_path / "one" / "checkpoints" / "00000002.safetensors").write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="00000002"), pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
        difference(tmp_path / "one", tmp_path / "two")
