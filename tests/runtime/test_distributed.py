"""Several processes on this machine give what one gives, resume each other's checkpoints, and stop when one is lost."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import jax
import numpy as np
import pytest

from lopt.runtime.distributed import ProcessConfig, any_process, even_devices, join_processes, on_host
from lopt.training import checkpoint, metrics

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(
    run_dir: Path,
    count: int,
    *overrides: str,
    steps: int = 20,
    apart: Mapping[int, tuple[str, ...] | None] = MappingProxyType({}),
    variables: Mapping[int, Mapping[str, str]] = MappingProxyType({}),
) -> list[subprocess.Popen]:
    """The processes of a run of the smoke config, all on this machine, with one CPU device each.

    Some may have arguments, or variables of the environment, of their own. A number whose arguments are None is not started.
    """
    script = [sys.executable, str(ROOT / "scripts" / "meta_train.py"), "--config", str(ROOT / "configs" / "smoke.py")]
    script += ["--run-dir", str(run_dir), "--outer-steps", str(steps), "--local-devices", "1", *overrides]
    # Programs that an earlier run of this module has compiled are not compiled again.
    cache = {"JAX_COMPILATION_CACHE_DIR": str(run_dir.parents[2] / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **cache}
    coordinator, processes = f"127.0.0.1:{free_port()}", []
    for index in range(count):
        own = apart.get(index, ())
        if own is None:
            continue
        one = ["--coordinator", coordinator, "--num-processes", str(count), "--process-id", str(index)] if count > 1 else []
        log = run_dir.with_name(f"{run_dir.name}.{steps}.{index}.log").open("w")
        with log:
            command = [*script, *one, "--heartbeat-timeout", "15", *own]
            processes.append(
                subprocess.Popen(
                    command, env={**environment, **variables.get(index, {})}, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
                )
            )
    return processes


def logs(run_dir: Path) -> str:
    return "\n".join(f"{path.name}: {path.read_text()[-1500:]}" for path in sorted(run_dir.parent.glob("*.log")))


def train(run_dir: Path, count: int, **options) -> dict:
    processes = start(run_dir, count, **options)
    try:
        codes = [process.wait(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * count, logs(run_dir)
    return checkpoint.load_theta(run_dir)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return train(tmp_path_factory.mktemp("single") / "run", 1)


def assert_close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), one, other)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_processes_give_what_one_gives(single, tmp_path, count):
    assert_close(train(tmp_path / "run", count), single)
    assert [record["outer_step"] for record in metrics.read(tmp_path / "run")] == list(range(1, 21))


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_any_number_of_processes_resumes_a_run(single, tmp_path, first, then):
    train(tmp_path / "run", first, steps=8)
    assert checkpoint.steps(tmp_path / "run")[-1] == 8
    assert_close(train(tmp_path / "run", then), single)
    assert [record["outer_step"] for record in metrics.read(tmp_path / "run")] == list(range(1, 21))


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_when_a_process_is_lost_the_others_stop_and_the_run_goes_on_from_there(tmp_path, lost):
    run_dir, processes = tmp_path / "run", start(tmp_path / "run", 2, steps=100_000)
    try:
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and not (run_dir.exists() and checkpoint.steps(run_dir)):
            assert all(process.poll() is None for process in processes), logs(run_dir)
            time.sleep(0.2)
        processes[lost].send_signal(signal.SIGKILL)
        assert processes[1 - lost].wait(timeout=90) != 0
    finally:
        for process in processes:
            process.kill()
    survivor = run_dir.with_name(f"run.100000.{1 - lost}.log").read_text()
    assert "lost another of the 2 processes" in survivor or "coordination service" in survivor.lower(), survivor[-2000:]
    if lost == 1:
        assert "lost another of the 2 processes" in survivor.splitlines()[-1], "nothing follows the message"
        assert processes[0].returncode == 1
    done = checkpoint.steps(run_dir)[-1]
    train(run_dir, 1, steps=done + 2)
    assert checkpoint.steps(run_dir)[-1] == done + 2


def ended(processes: list[subprocess.Popen], seconds: float = 200) -> list[int]:
    try:
        return [process.wait(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.slow
def test_processes_that_were_not_started_alike_stop_before_the_first_outer_step(tmp_path):
    run_dir = tmp_path / "run"
    assert ended(start(run_dir, 2, apart={1: ("--seed", "3", "--outer.learning-rate", "0.1")})) == [1, 1]
    for index in (0, 1):
        (line,) = [line for line in run_dir.with_name(f"run.20.{index}.log").read_text().splitlines() if "[Gloo]" not in line]
        assert (
            "process 1 is not of the same run as process 0: outer.learning_rate is 0.1 there and 0.003 in process 0; seed" in line
        )
    assert not run_dir.exists()
    for name in ("lopt", "tasks"):
        shutil.copytree(ROOT / name, tmp_path / "edited" / name, ignore=shutil.ignore_patterns("__pycache__", "weights"))
    with (tmp_path / "edited" / "lopt" / "training" / "outer.py").open("a") as file:
        file.write("\n_EDITED = 1\n")
    assert ended(start(run_dir, 2, steps=21, variables={1: {"PYTHONPATH": str(tmp_path / "edited")}})) == [1, 1]
    for index in (0, 1):
        assert "process 0: lopt/training/outer.py is " in run_dir.with_name(f"run.21.{index}.log").read_text()


@pytest.mark.slow
def test_a_run_directory_that_one_does_not_see_is_named(tmp_path):
    run_dir, other = tmp_path / "run", tmp_path / "other"
    other.mkdir()
    assert ended(start(run_dir, 2, apart={1: ("--run-dir", str(other))})) == [1, 1]
    assert "process 1 does not see the run directory" in logs(run_dir)
    assert "stack trace" not in logs(run_dir)


@pytest.mark.slow
def test_a_process_without_the_kernel_is_of_the_run(single, tmp_path):
    """Held-out scores differ in the last bits then; what counts is process 0's."""
    run_dir, variables = tmp_path / "run", {0: {"LOPT_NATIVE": ""}, 1: {"LOPT_NATIVE": "off"}}
    processes = start(run_dir, 2, "--held-out.every", "5", "--held-out.steps", "20", variables=variables)
    assert ended(processes, 600) == [0, 0], logs(run_dir)
    assert_close(checkpoint.load_theta(run_dir), single)


@pytest.mark.slow
def test_who_does_not_come_is_named_and_no_stack_is_shown(tmp_path):
    began = time.monotonic()
    assert ended(start(tmp_path / "a", 3, apart={1: None})) == [1, 1]
    assert time.monotonic() - began < 90
    text = logs(tmp_path / "a")
    assert text.count("process 1 has not come to port") == 2
    assert ended(start(tmp_path / "b", 2, apart={0: None})) == [1]
    assert "process 0 has not answered at 127.0.0.1:" in logs(tmp_path / "b")
    assert "stack" not in logs(tmp_path / "b").lower()


def test_a_single_process_needs_nothing_of_it():
    tree = {"a": jax.numpy.ones(2), "key": jax.random.key(3)}
    host = on_host(tree)
    assert type(host["a"]) is np.ndarray
    np.testing.assert_array_equal(host["a"], tree["a"])
    np.testing.assert_array_equal(jax.random.key_data(host["key"]), jax.random.key_data(tree["key"]))
    assert any_process(True)
    assert not any_process(False)
    assert [len(even_devices(particles)) for particles in (1, 3, 4)] == [1, 1, 2]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ProcessConfig("host:1"), "num_processes and process_id is missing"),
        (ProcessConfig("auto", 2, 0), "with --coordinator auto, leave out"),
        (ProcessConfig("host:1", 2, 2), "process_id must be from 0 to num_processes - 1 = 1, got 2"),
    ],
)
def test_what_does_not_fit_together_is_refused(config, message):
    assert config.is_one_of_many
    with pytest.raises(ValueError, match=message):
        join_processes(config)
