"""Loggers show what metrics.jsonl holds, each step once however often the run was killed, and never stop it."""

import contextlib
import importlib.util
import json
import math
import os
import random
import signal
import struct
import subprocess
import sys
import time
import zlib
from importlib.machinery import ModuleSpec
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lopt.config import ConfigError
from lopt.training import metrics
from lopt.training.loggers import LoggerConfig, Loggers, check_loggers, open_loggers
from lopt.training.loggers.base import Opening
from lopt.training.loggers.wandb import WandbLogger
from lopt.training.loggers.wandb_process import last_step, records
from lopt.training.metrics import MetricsWriter

EXPERIMENT = {
    "class": "lopt.training.trainer:MetaTrainConfig",
    "seed": 3,
    "outer": {"class": "lopt.training.outer:OuterConfig", "learning_rate": 0.1},
}
ENVIRONMENT = {"python": "3.11.0", "git": {"commit": "c0ffee", "dirty": True}}


class Recorder:
    """A logger that keeps what it is given, and raises when it is asked to."""

    def __init__(self, fails_at=None, fails_to_close=False):
        self.written, self.closed = [], []
        self.fails_at, self.fails_to_close = fails_at, fails_to_close

    def write(self, step, values):
        if step == self.fails_at:
            raise ConnectionError("the server is gone")
        self.written.append((step, dict(values)))

    def close(self, failed):
        self.closed.append(failed)
        if self.fails_to_close:
            raise OSError("cannot flush")


def values(step, start):
    return {
        "meta_loss": 1.0 / step,
        "digits/meta_loss": -1.0 / step,
        "start": start,
        "gradient_norm": math.nan if step == 2 else 0.5,
    }


def log_all(log, steps):
    for step in steps:
        log(step, values(step, 0))


def test_a_logger_that_fails_is_named_once_and_left_out():
    good, bad = Recorder(), Recorder(fails_at=3)
    with Loggers({"bad": lambda: bad, "good": lambda: good}) as log:
        log_all(log, (1, 2))
        with pytest.warns(RuntimeWarning, match=r"'bad' failed at outer step 3 .*training goes on.*the server is gone") as warned:
            log_all(log, range(3, 9))
        assert (len(warned), warned[0].filename) == (1, log_all.__code__.co_filename)
    assert [step for step, _ in good.written] == list(range(1, 9))
    assert [step for step, _ in bad.written] == [1, 2]
    assert (good.closed, bad.closed) == ([False], [True])


def test_a_logger_that_cannot_be_opened_or_closed():
    def refuse():
        raise PermissionError("read-only")

    good, bad = Recorder(), Recorder(fails_to_close=True)
    with pytest.warns(RuntimeWarning, match="'first' could not be opened .*PermissionError: read-only"):
        log = Loggers({"first": refuse, "bad": lambda: bad, "good": lambda: good})
    log(1, {"meta_loss": 1.0})
    with pytest.warns(RuntimeWarning, match="'bad' failed when it was closed .*cannot flush") as warned:
        log.close()
    assert len(warned) == 1
    assert good.written == bad.written == [(1, {"meta_loss": 1.0})]
    assert (good.closed, bad.closed) == ([False], [False])
    log.close()  # a second time does nothing


def test_both_failures_of_one_logger_are_told():
    with (
        Loggers({"bad": lambda: Recorder(fails_at=1, fails_to_close=True)}) as log,
        pytest.warns(RuntimeWarning, match="the server is gone; closing it failed too: OSError: cannot flush"),
    ):
        log(1, {})


def test_the_error_that_ends_a_run_passes_and_is_told_to_loggers():
    recorder = Recorder()
    with pytest.raises(KeyboardInterrupt), Loggers({"recorder": lambda: recorder}):
        raise KeyboardInterrupt
    assert recorder.closed == [True]


def test_scalars_of_any_origin_are_logged_and_text_is_not():
    recorder = Recorder()
    with Loggers({"recorder": lambda: recorder}) as log:
        log(1, {"jax": jnp.float32(0.5), "numpy": np.int64(3), "flag": True, "inf": math.inf, "text": "digits", "nothing": None})
    assert recorder.written == [(1, {"jax": 0.5, "numpy": 3.0, "flag": 1.0, "inf": math.inf})]


def test_what_is_no_scalar_only_warns():
    with Loggers({"recorder": Recorder}) as log, pytest.warns(RuntimeWarning, match="'recorder' failed at outer step 1"):
        log(1, {"losses": jnp.zeros(3)})


@pytest.mark.parametrize("found", [None, ModuleSpec("wandb", None)], ids=["absent", "a folder of that name"])
def test_a_missing_package_is_an_error_that_names_the_extra(tmp_path, monkeypatch, found):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    with pytest.raises(ConfigError, match=r"logger 'wandb' needs the package of that name: pip install wandb"):
        open_loggers(LoggerConfig(logger=("wandb",)), tmp_path, EXPERIMENT, ENVIRONMENT)
    assert list(tmp_path.iterdir()) == []
    check_loggers(LoggerConfig())
    check_loggers(LoggerConfig(logger=("wandb",), wandb_mode="disabled"))


def test_what_is_installed_is_found():
    check_loggers(LoggerConfig(logger=("tensorboard", "wandb")))


def test_packages_are_imported_only_when_used():
    code = "import sys, lopt.training.loggers; sys.exit(bool({'wandb', 'tensorboard', 'jax'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# A run that writes its metrics and logs them, as the trainer does.


def log_steps(run_dir, first, last, *loggers):
    """Log outer steps first ... last, with the step at which the run went on among the values."""
    config = LoggerConfig(logger=loggers)
    with open_loggers(config, run_dir, EXPERIMENT, ENVIRONMENT, first - 1) as log, MetricsWriter(run_dir, first - 1) as writer:
        for step in range(first, last + 1):
            writer.write({"outer_step": step, **values(step, first - 1)})
            log(step, values(step, first - 1))


def tensorboard(run_dir):
    """What TensorBoard shows: name -> step -> value."""
    accumulator = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0})
    accumulator.Reload()
    shown = {name: [(event.step, event.value) for event in accumulator.Scalars(name)] for name in accumulator.Tags()["scalars"]}
    assert all(len(dict(curve)) == len(curve) for curve in shown.values()), "a step is shown twice"
    return {name: dict(curve) for name, curve in shown.items()}


def recorded(run_dir):
    """The same from metrics.jsonl, in the precision of TensorBoard."""
    curves = {}
    for record in metrics.read(run_dir):
        for name, value in record.items():
            if name != "outer_step":
                curves.setdefault(name, {})[record["outer_step"]] = float(np.float32(value))
    return curves


def test_tensorboard_shows_the_metrics(tmp_path):
    log_steps(tmp_path, 1, 5, "tensorboard")
    np.testing.assert_equal(tensorboard(tmp_path), recorded(tmp_path))
    accumulator = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name, content in (("config", EXPERIMENT), ("environment", ENVIRONMENT)):
        (event,) = accumulator.Tensors(name)
        assert json.loads(event.tensor_proto.string_val[0].decode().strip("`json\n")) == content


def test_tensorboard_has_each_step_at_once(tmp_path):
    with open_loggers(LoggerConfig(logger=("tensorboard",)), tmp_path, EXPERIMENT, ENVIRONMENT) as log:
        log(1, {"meta_loss": 0.5})
        assert tensorboard(tmp_path) == {"meta_loss": {1: 0.5}}


@pytest.mark.parametrize("starts", [[(1, 7), (4, 9)], [(1, 5), (1, 3)], [(1, 7), (4, 5), (6, 9), (6, 8)], [(1, 5), (6, 6)]])
def test_tensorboard_shows_a_resumed_run_as_metrics_do(tmp_path, starts):
    for first, last in starts:
        log_steps(tmp_path, first, last, "tensorboard")
    np.testing.assert_equal(tensorboard(tmp_path), recorded(tmp_path))
    assert len(list((tmp_path / "tensorboard").iterdir())) == len(starts)


def test_tensorboard_is_given_what_it_missed(tmp_path):
    log_steps(tmp_path, 1, 4, "tensorboard")
    log_steps(tmp_path, 5, 8)  # without, as after a failure
    log_steps(tmp_path, 7, 9, "tensorboard")
    np.testing.assert_equal(tensorboard(tmp_path), recorded(tmp_path))


def test_tensorboard_file_cut_short(tmp_path):
    log_steps(tmp_path, 1, 6, "tensorboard")
    (file,) = (tmp_path / "tensorboard").iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    log_steps(tmp_path, 7, 8, "tensorboard")
    np.testing.assert_equal(tensorboard(tmp_path), recorded(tmp_path))


def test_a_run_goes_on_where_tensorboard_cannot_write(tmp_path):
    (tmp_path / "tensorboard").write_text("a file is in the way")
    with pytest.warns(RuntimeWarning, match="'tensorboard' could not be opened .*FileExistsError") as warned:
        log_steps(tmp_path, 1, 3, "tensorboard")
    assert len(warned) == 1
    assert len(metrics.read(tmp_path)) == 3


# Weights & Biases, offline: its files are read back.


def history(run_dir):
    """Of each start's .wandb file, in order: the W&B run's record, its rows as step -> values, and how it ended (or None)."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]  generated

    starts = []
    for path in sorted((run_dir / "wandb").glob("offline-run-*/*.wandb")):
        found = [Record.FromString(data) for data in records(path.read_bytes())]
        assert [record.num for record in found] == list(range(1, len(found) + 1))
        rows = {}
        for record in found:
            if record.HasField("history"):
                items = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
                assert record.history.step.num not in rows
                rows[record.history.step.num] = {name: value for name, value in items.items() if not name.startswith("_")}
        assert last_step(path) == max(rows, default=0)
        ended = [record.exit.exit_code for record in found if record.HasField("exit")]
        starts.append((next(record.run for record in found if record.HasField("run")), rows, *ended))
    return starts


def processes_in(directory):
    """Those that work in a directory, where the system tells."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            if link.readlink() == directory:
                found.append(link.parent.name)
    return found


RUN = """
import json, os, pathlib, signal, sys, time
from lopt.training.loggers import LoggerConfig, open_loggers
from lopt.training.metrics import MetricsWriter

run = json.load(sys.stdin)
config = LoggerConfig(logger=("wandb",))
with open_loggers(config, *run["start"]) as log, MetricsWriter(run["start"][0], run["start"][-1]) as writer:
    for step, values in run["rows"]:
        writer.write({"outer_step": step, **values})
        log(step, values)
    if run["killed"]:
        while not list(pathlib.Path(run["start"][0]).glob("wandb/*/*.wandb")):  # W&B's process has begun, however busy the machine
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_wandb_has_a_killed_run_whole(tmp_path):
    run_dir, home, cwd = tmp_path / "digits", tmp_path / "home", tmp_path / "cwd"
    for path in (home, cwd):
        path.mkdir()
    env = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "XDG_"))} | {"HOME": str(home)}
    for first, last, status in ((1, 60, -signal.SIGKILL), (41, 80, 0)):
        rows = [(step, values(step, first - 1)) for step in range(first, last + 1)]
        run = {"start": [str(run_dir), EXPERIMENT, ENVIRONMENT, first - 1], "rows": rows, "killed": status != 0}
        command = [sys.executable, "-W", "error", "-c", RUN]
        done = subprocess.run(command, input=json.dumps(run), env=env, cwd=cwd, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stdout, done.stderr) == (status, "", "")
        while processes_in(cwd):  # W&B's own outlives the killed one until it has written what it was given
            time.sleep(0.05)

    # What was given to W&B before the kill is there, and is not logged again.
    (_, before, killed), (_, after, ended) = starts = history(run_dir)
    assert (list(before), list(after)) == ([*range(1, 61)], [*range(61, 81)])
    assert (killed, ended) == (1, 0)
    for step, row in (before | after).items():
        np.testing.assert_equal(row, values(step, 0 if step <= 60 else 40))
    # It is one run of W&B.
    assert [run.display_name for run, _, _ in starts] == ["digits", ""]  # the second leaves the name as it is
    for run, _, _ in starts:
        assert run.run_id == (run_dir / "wandb" / "run_id").read_text()
        assert (run.project, run.host) == ("lopt", "")
        config = {update.key: json.loads(update.value_json) for update in run.config.update}
        assert {name: config[name] for name in (*EXPERIMENT, "environment")} == {**EXPERIMENT, "environment": ENVIRONMENT}
    # Nothing was written elsewhere.
    assert [*home.iterdir(), *cwd.iterdir()] == []
    assert sorted(path.name for path in run_dir.iterdir()) == ["metrics.jsonl", "wandb"]


def test_wandb_is_given_what_it_missed(tmp_path):
    log_steps(tmp_path, 1, 5)
    log_steps(tmp_path, 4, 6, "wandb")
    ((_, rows, ended),) = history(tmp_path)
    np.testing.assert_equal(rows, {step: values(step, 0 if step < 4 else 3) for step in range(1, 7)})
    assert ended == 0


def start_of(run_dir):
    return Opening(run_dir, EXPERIMENT, ENVIRONMENT, 0)


def test_a_run_goes_on_when_wandb_dies(tmp_path):
    logger = WandbLogger(LoggerConfig(logger=("wandb",)), start_of(tmp_path))
    with Loggers({"wandb": lambda: logger}) as log:
        log(1, {"meta_loss": 0.5})
        os.kill(logger.process.pid, signal.SIGKILL)
        logger.process.wait()
        with pytest.warns(RuntimeWarning, match=r"failed at outer step 2 .*ended with status -9; see '.*process\.log'") as warned:
            log_all(log, range(2, 10))
    assert len(warned) == 1


def test_a_run_does_not_wait_for_a_wandb_that_hangs(tmp_path):
    logger = WandbLogger(LoggerConfig(logger=("wandb",)), start_of(tmp_path), close_seconds=0.2)
    log = Loggers({"wandb": lambda: logger})
    os.kill(logger.process.pid, signal.SIGSTOP)
    log_all(log, range(1, 2000))  # more than a pipe holds
    with pytest.warns(RuntimeWarning, match="failed when it was closed .*W&B was not done 0.2 s after the end"):
        log.close()
    assert logger.process.returncode == -signal.SIGKILL


@pytest.mark.slow  # waits ten seconds
def test_a_wandb_that_gives_no_sign_of_life_is_not_waited_for(tmp_path):
    logger = WandbLogger(LoggerConfig(logger=("wandb",)), start_of(tmp_path))
    log = Loggers({"wandb": lambda: logger})
    log_all(log, range(1, 5))
    os.kill(logger.process.pid, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.warns(RuntimeWarning, match="W&B was not done 10 s after the end"):
        log.close()
    assert time.monotonic() - began < 20


def test_tensorboard_has_all_steps_though_the_clock_went_back(tmp_path, monkeypatch):
    for now, steps in ((2_000_000_000, (1, 2)), (1_500_000_000, (3, 4)), (1_600_000_000, (5,))):
        monkeypatch.setattr(time, "time_ns", lambda now=now: now * 10**9)
        monkeypatch.setattr(time, "time", lambda now=now: float(now))
        with open_loggers(LoggerConfig(logger=("tensorboard",)), tmp_path, EXPERIMENT, ENVIRONMENT, steps[0] - 1) as log:
            log_all(log, steps)
    files = sorted((tmp_path / "tensorboard").iterdir())
    assert [file.name[-20:] for file in files] == [f"2000000000.00000000{n}" for n in range(3)]
    assert list(tensorboard(tmp_path)["meta_loss"]) == [1, 2, 3, 4, 5]


def test_what_wandb_does_not_take_is_not_kept_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr("lopt.training.loggers.wandb._PENDING_BYTES", 2**17)
    logger = WandbLogger(LoggerConfig(logger=("wandb",)), start_of(tmp_path), close_seconds=60)
    with Loggers({"wandb": lambda: logger}) as log:
        os.kill(logger.process.pid, signal.SIGSTOP)
        with pytest.warns(RuntimeWarning, match="has not taken 13.,... bytes of metrics") as warned:
            log_all(log, range(1, 5000))
    assert len(warned) == 1
    assert logger.process.returncode == -signal.SIGKILL


def test_what_wandb_says_of_its_end_is_passed_on(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("damaged\n{}\n")
    with pytest.warns(RuntimeWarning, match="'wandb' failed .*MetricsError: .*line 1 is damaged") as warned:
        Loggers({"wandb": lambda: WandbLogger(LoggerConfig(), Opening(tmp_path, {}, {}, 5))}).close()
    assert len(warned) == 1


@pytest.mark.slow  # waits for W&B
def test_without_a_key_an_online_run_is_logged_offline(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    config = LoggerConfig(logger=("wandb",), wandb_mode="online")
    with (
        pytest.warns(RuntimeWarning, match=r"could not be reached.*wandb sync .*/wandb/offline-run-\*.*`wandb login`") as warned,
        open_loggers(config, tmp_path, EXPERIMENT, ENVIRONMENT) as log,
    ):
        log(1, {"meta_loss": 0.5})
    assert len(warned) == 1
    ((_, rows, ended),) = history(tmp_path)
    assert (rows, ended) == ({1: {"meta_loss": 0.5}}, 0)


def encode(data):
    """The records of a .wandb file as its format has them: a fragment never crosses a block's border."""
    content = b":W&B\xe1\xbe\x00"
    for record in data:
        kinds = [2, 3, 4]
        while True:
            room = 32768 - len(content) % 32768
            if room < 7:
                content += bytes(room)
                room = 32768
            part, record = record[: room - 7], record[room - 7 :]
            kind = {(2, True): 2, (2, False): 1, (3, True): 3, (3, False): 4}[kinds[0], bool(record)]
            content += struct.pack("<IHB", zlib.crc32(bytes([kind]) + part), len(part), kind) + part
            kinds = [3]
            if not record:
                break
    return content


def test_wandb_files_are_read_whole_cut_short_and_damaged():
    source = random.Random(0)
    data = [source.randbytes(source.choice([0, 1, 100, 5000, 32754, 32761, 32768, 100_000])) for _ in range(60)]
    content = encode(data)
    assert list(records(content)) == data
    for length in (0, 3, 7, 20, 32768, len(content) // 2, len(content) - 1):
        whole = list(records(content[:length]))
        assert whole == data[: len(whole)]
        assert len(encode(data[: len(whole) + 1])) > length  # the next one is not whole
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 1
    whole = list(records(bytes(damaged)))
    assert whole == data[: len(whole)]
    assert 0 < len(whole) < len(data)
