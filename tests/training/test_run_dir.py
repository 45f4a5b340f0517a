"""What lies in a run directory is not lost in silence: it is locked, complete, on the disk, and of one machine, or the user is told."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.config import ConfigError
from lopt.optimizers.momentum import LearnedSGDMConfig
from lopt.runtime.environment import read_starts
from lopt.runtime.locks import BusyError, only_process
from lopt.symmetry.spec import WeightSpec
from lopt.task.base import Task, TaskConfig
from lopt.training import checkpoint, metrics
from lopt.training.run_dir import HistoryError
from lopt.training.stall import Stall
from lopt.training.trainer import DivergedError, meta_train
from tests.comparison.toy import EXPERIMENT, splits

SGDM = dataclasses.replace(EXPERIMENT, optimizer=LearnedSGDMConfig(alpha=0.03))


def train(run_dir, outer_steps=6, **options):
    return meta_train(dataclasses.replace(SGDM, outer_steps=outer_steps), run_dir, progress=False, **options)


def theta_of(run_dir):
    return jax.tree.map(np.asarray, checkpoint.load_theta(run_dir))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    directory = tmp_path_factory.mktemp("unbroken")
    train(directory)
    return directory


@pytest.fixture
def run_dir(unbroken, tmp_path):
    """A copy of a run that is done."""
    subprocess.run(["cp", "-r", str(unbroken), str(tmp_path / "run")], check=True)
    return tmp_path / "run"


@dataclasses.dataclass(frozen=True)
class FlatConfig(TaskConfig):
    """Losses from which nothing can be learned: above the cap, or constant."""

    height: float = 1e6
    slope: float = 1.0

    def make(self):
        return Task(
            name="flat",
            init=lambda key: {"w": jnp.ones(3)},
            loss=lambda params, key, batch: self.height + self.slope * jnp.sum(jnp.square(params["w"])),
            spec=WeightSpec.parse({"w": "weights!"}),
            datasets=splits(),
            initial_loss=1.0,
        )


@pytest.mark.parametrize(
    ("task", "reason", "advice"),
    [
        (FlatConfig(), "every loss was above the cap", r"smaller optimizer\.alpha"),
        (FlatConfig(height=1.0, slope=0.0), "the meta-gradient was zero", "it may be constant"),
    ],
)
def test_a_run_that_cannot_learn_stops_with_advice(tmp_path, task, reason, advice):
    """It did all its outer steps, and said that nothing had diverged."""
    experiment = dataclasses.replace(SGDM, task=task, outer_steps=100, max_skipped=4)
    with pytest.raises(DivergedError, match=rf"{reason}.* in each of the last 4 outer steps \(outer step 4\).*{advice}"):
        meta_train(experiment, tmp_path, progress=False)
    records = metrics.read(tmp_path)
    assert len(records) == 4
    assert records[-1]["gave_up"].startswith(reason)
    assert checkpoint.steps(tmp_path)[-1] == 4


def test_a_run_that_ends_at_the_cap_says_what_to_change(tmp_path, capsys):
    """It is over before it would be given up."""
    experiment = dataclasses.replace(SGDM, task=FlatConfig(), outer_steps=3)
    advice = r"above the cap.* in each of the last 3 outer steps\. .*smaller optimizer\.alpha.*unroll\.loss_cap times the task's"
    with pytest.warns(UserWarning, match=advice):
        meta_train(experiment, tmp_path)
    assert "every loss at the cap, try a smaller optimizer.alpha" in capsys.readouterr().out


def test_a_meta_loss_of_the_last_steps_alone_may_have_no_gradient_before():
    stall = Stall(limit=2, windows=5)
    assert [stall.update({"no_gradient": window % 5 < 4}) for window in range(20)] == [None] * 20
    assert [bool(stall.update({"no_gradient": True})) for _ in range(5)] == [False] * 4 + [True]
    assert [bool(stall.update({"all_capped": True})) for _ in range(2)] == [False, True]


def test_history_without_checkpoints_is_refused_unless_it_is_set_aside(run_dir):
    (run_dir / "checkpoints").rename(run_dir.parent / "elsewhere")
    before = (run_dir / "metrics.jsonl").read_bytes()
    with pytest.raises(
        HistoryError, match=r"the history of 6 outer steps, but no file in checkpoints/ is a checkpoint.*--restart"
    ):
        train(run_dir)
    (run_dir / "checkpoints").mkdir()
    with pytest.raises(HistoryError, match="no file in checkpoints/"):
        train(run_dir)
    (run_dir / "checkpoints").rmdir()
    (run_dir / "checkpoints").symlink_to(run_dir.parent / "nowhere")
    with pytest.raises(HistoryError, match="checkpoints is a link to nothing"):
        train(run_dir)
    assert (run_dir / "metrics.jsonl").read_bytes() == before
    with pytest.warns(UserWarning, match=r"what was in .*run is kept as .*run\.1"):
        train(run_dir, restart=True)
    assert (run_dir.parent / "run.1" / "metrics.jsonl").read_bytes() == before
    assert checkpoint.steps(run_dir)[-1] == 6
    with pytest.warns(UserWarning, match=r"is kept as .*run\.2"):  # a run that is whole too, if that is asked for
        train(run_dir, outer_steps=2, restart=True)
    assert checkpoint.steps(run_dir.parent / "run.2")[-1] == 6
    assert checkpoint.steps(run_dir) == [2]
    train(run_dir.parent / "new", outer_steps=1, restart=True)


def test_history_without_a_config_is_refused(run_dir):
    (run_dir / "config.json").unlink()
    with pytest.raises(
        HistoryError, match=r"holds checkpoints, metrics\.jsonl, environment\.json, best of a run, but not its config"
    ):
        meta_train(dataclasses.replace(SGDM, seed=5), run_dir, progress=False)
    assert not (run_dir / "config.json").exists()


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(unbroken, run_dir):
    for file in (run_dir / "checkpoints").iterdir():
        file.unlink()
    lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "metrics.jsonl").write_text(lines[0])
    for file in (run_dir / "best" / "checkpoints").iterdir():
        file.unlink()
    with pytest.warns(UserWarning, match="has no checkpoint yet: the 1 outer steps that were done are done again"):
        train(run_dir)
    jax.tree.map(np.testing.assert_array_equal, theta_of(run_dir), theta_of(unbroken))


def test_two_starts_do_not_work_on_one_run(tmp_path):
    train(tmp_path / "run", outer_steps=1)
    with only_process(tmp_path / "run" / ".lock", "it"):
        with pytest.raises(BusyError, match=rf"run is in use by process {os.getpid()} on .+, since 20.*wait for it"):
            train(tmp_path / "run")
        with pytest.raises(BusyError):
            train(tmp_path / "run", restart=True)
    train(tmp_path / "run", outer_steps=2)
    assert (tmp_path / "run" / ".lock").read_text() == ""


def test_a_lock_goes_with_its_process(tmp_path):
    code = """
import sys, time
from lopt.runtime.locks import only_process
with only_process(sys.argv[1], "it"):
    print("in", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "in\n"
        with pytest.raises(BusyError, match=f"it is in use by process {process.pid}"), only_process(tmp_path / "lock", "it"):
            pass
        process.kill()
    with only_process(tmp_path / "lock", "it"):
        pass


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.warns(UserWarning, match=r"cannot be locked \(No locks available\)"), only_process(tmp_path / "lock", "it"):
        pass


def test_metrics_are_on_the_disk_before_the_checkpoint_of_their_step(tmp_path, monkeypatch):
    fsync, replace, done = os.fsync, os.replace, []

    def logged_fsync(descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if path.endswith("metrics.jsonl"):
            done.append(("metrics", len((tmp_path / "metrics.jsonl").read_text().splitlines())))
        fsync(descriptor)

    def logged_replace(source, target):
        if str(target).endswith(".safetensors") and "best" not in str(target):
            done.append(("checkpoint", int(target.stem)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(os, "replace", logged_replace)
    train(tmp_path)
    assert done[:6] == [entry for step in (2, 4, 6) for entry in (("metrics", step), ("checkpoint", step))]


def test_metrics_that_are_missing_are_told_and_marked(run_dir):
    lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "metrics.jsonl").write_text("".join([*lines[:2], lines[4]]))
    with pytest.warns(UserWarning, match=r"metrics\.jsonl lacks the outer steps 3 to 4, 6 to 6.*power cut"):
        train(run_dir, outer_steps=7)
    assert read_starts(run_dir)[-1]["missing_metrics"] == [[3, 4], [6, 6]]
    assert [record["outer_step"] for record in metrics.read(run_dir)] == [1, 2, 5, 7]


def test_going_on_with_other_code_or_devices_is_told_by_name(run_dir):
    starts = json.loads((run_dir / "environment.json").read_text())
    assert len(starts[-1]["code"]) == 16
    starts[-1] |= {"devices": 64, "native": True, "code": "0" * 16, "packages": {**starts[-1]["packages"], "jax": "0.1"}}
    (run_dir / "environment.json").write_text(json.dumps(starts))
    with pytest.raises(ConfigError, match=r"jax 0\.1 -> .*; devices 64 -> 2; native True -> False; code 0000.*without strict"):
        train(run_dir, outer_steps=7, strict=True)
    assert len(read_starts(run_dir)) == 1
    with pytest.warns(UserWarning, match=r"goes on otherwise than before: .*devices 64 -> 2.*bit for bit"):
        train(run_dir, outer_steps=7)
    train(run_dir, outer_steps=8, strict=True)  # as the last start


def test_what_a_killed_write_left_is_taken_away(run_dir):
    (run_dir / ".environment.json.123.tmp").write_text("half")
    (run_dir / ".mine").write_text("kept")
    train(run_dir)
    assert {path.name for path in run_dir.glob(".*")} == {".mine", ".lock"}


def test_a_directory_that_cannot_be_synced_is_no_reason_to_refuse(tmp_path, monkeypatch):
    fsync = os.fsync

    def some_network_file_system(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(22, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", some_network_file_system)
    train(tmp_path, outer_steps=2)
    assert checkpoint.steps(tmp_path) == [2]
