"""scripts/evaluate_suite.py: a suite of two toy tasks, from arguments to page; going on; what fails."""

import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.evaluation.baselines import Hyper, Schedule
from lopt.features.presets import Celo2Features
from lopt.networks.update import DeepSetsConfig
from lopt.optimizers.config import LearnedOptimizerConfig
from lopt.optimizers.direction import DirectionRule
from lopt.pretrained.bind import Trained
from scripts import evaluate_suite as script
from tasks.mlp import MLPConfig

ROOT = Path(__file__).resolve().parents[2]
TOY = '''"""Two toys."""

from lopt.evaluation.suite import SuiteConfig, SuiteTask
from tasks.autoencoder import AutoencoderConfig
from tasks.mlp import MLPConfig

config = SuiteConfig(
    tasks=(
        SuiteTask("MLP", MLPConfig(image_size=4, hidden=(3,), batch_size=8), steps=12),
        SuiteTask("autoencoder", AutoencoderConfig(image_size=4, hidden=(), latent=2, batch_size=8), steps=10),
    ),
    trials=(1, 2),
    seeds=2,
    optimizers=("nadamw", "sgdm"),
)
'''


@pytest.fixture
def suite(tmp_path, monkeypatch):
    for name in ("prepare", "forget_programs"):  # this process uses JAX for other things too
        monkeypatch.setattr(script, name, lambda: None)
    path = tmp_path / "toy.py"
    path.write_text(TOY)
    return ["--suite", str(path), "--out", str(tmp_path / "out"), "--jobs", "1"]


def test_a_suite_from_arguments_to_page_and_on(suite, tmp_path, capsys, monkeypatch):
    """A unit fails at first, a file is damaged then: a second call does these again, and what is new, and nothing else."""
    compete, done = script.compete, []

    def fails(problem, entrant, *args):
        if problem.name == "digits4_autoencoder_2" and entrant.name == "sgdm":
            raise RuntimeError("out of memory")
        return compete(problem, entrant, *args)

    def counted(problem, entrant, *args):
        done.append((problem.name, entrant.name))
        return compete(problem, entrant, *args)

    monkeypatch.setattr(script, "compete", fails)
    with pytest.raises(SystemExit) as ended:
        script.main(suite)
    assert ended.value.code == 1
    said = capsys.readouterr().out
    assert "failed: sgdm on digits4_autoencoder_2: out of memory" in said
    assert "[3/4] digits4_autoencoder_2: nadamw in" in said
    assert "left" in said
    page = (tmp_path / "out" / "report.html").read_text()
    assert "2 optimizers on 1 tasks, 2 trials each (1 tasks are still to come)" in page
    assert (tmp_path / "out" / "profile.png").read_bytes().startswith(b"\x89PNG")

    kept = sorted((tmp_path / "out" / "races").rglob("*.npz"))
    assert [path.stem for path in kept] == ["nadamw", "nadamw", "sgdm"]
    kept[0].write_bytes(b"no race")
    monkeypatch.setattr(script, "compete", counted)
    with pytest.warns(UserWarning, match="is damaged and counts as missing"):
        script.main([*suite, "--optimizer", "sgdm", "lopt-direction"])
    new = [(name, "lopt-direction") for name in ("digits4_mlp_3", "digits4_autoencoder_2")]
    again = [("digits4_autoencoder_2", "nadamw"), ("digits4_autoencoder_2", "sgdm")]
    assert sorted(done) == sorted([*new, *again])
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert "3 optimizers on 2 tasks" in summary
    assert "| lopt-direction |" in summary


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--optimizer", "adamm"], "there is no baseline 'adamm'; did you mean adam"),
        (["--optimizer", "adam:0.1"], "leave the learning rate out"),
        (["--optimizer", "adam@constant"], "every optimizer has the suite's schedule; leave the @ out"),
        (["--optimizer", "./nowhere"], "no optimizer and no directory './nowhere'"),
        (["--tasks", "5"], r"--tasks: the suite has the tasks 0 to 1, not \[5\]"),
        (["--trials", "4", "1"], "suite.trials must be rising"),
        (["--jobs", "0"], "--jobs must be at least 1, got 0"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_run(suite, arguments, named, tmp_path):
    with pytest.raises(SystemExit, match=named):
        script.main([*suite, *arguments])
    assert not (tmp_path / "out").exists()


def test_the_time_left_is_by_task():
    config = script.load_suite(script.argument_parser().parse_args(["--scale", "small"]))
    units = [script.Unit(index, str(index), name, Path()) for index in (0, 1) for name in ("nadamw", "muon")]
    eta = script.Eta(config, units, jobs=2)
    eta.done(units[0], 50.0)
    per_step = 50.0 / config.tasks[0].steps
    assert eta.seconds() == pytest.approx((50.0 + 2 * per_step * config.tasks[1].steps) / 2)


def test_a_learned_direction_is_tuned_by_its_rate():
    """Its step is its direction times rate and schedule, and its first trial the rate that it was meta-trained at."""
    problem = MLPConfig(image_size=4, hidden=(3,), batch_size=8).make()
    config = LearnedOptimizerConfig(DirectionRule(learning_rate=0.032), Celo2Features(), DeepSetsConfig((4,)))
    theta = jax.jit(config.make(problem.spec).init)(jax.random.key(0))
    entrant = script.learned("mine", Trained("mine", config, theta, lambda: (problem.spec,), "mine"), problem)
    assert entrant.start == 0.032
    params = jax.jit(problem.init)(jax.random.key(1))
    grads = jax.tree.map(jnp.ones_like, params)

    def first(rate, schedule):
        def update(params, grads):
            transform = entrant.opt_fn((theta, Hyper(jnp.float32(rate), None, schedule)))
            return transform.update(grads, transform.init(params), params, value=jnp.float32(1), num_steps=10)[0]

        return jax.jit(update)(params, grads)

    whole, rising = first(0.1, Schedule(0.0, 1.0, 10.0)), first(0.1, Schedule(0.5, 1.0, 10.0))
    for step, fifth in zip(jax.tree.leaves(whole), jax.tree.leaves(rising), strict=True):
        assert float(jnp.sqrt(jnp.mean(step**2))) == pytest.approx(0.1, rel=1e-3)
        np.testing.assert_allclose(fifth, step / 5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.compiles
def test_several_processes_come_to_the_same(suite, tmp_path):
    script.main([*suite, "--trials", "1"])
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "scripts" / "evaluate_suite.py"), *suite[:2], "--trials", "1", "--jobs", "2"]
    command += ["--out", str(tmp_path / "two")]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr
    one, two = ((tmp_path / name / "ratios.csv").read_text() for name in ("out", "two"))
    assert one == two


PARENT = """
import multiprocessing, time
from scripts.evaluate_suite import end_with_parent

def work(queue):
    end_with_parent()
    queue.put(multiprocessing.current_process().pid)
    time.sleep(600)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    context.Process(target=work, args=(queue,)).start()
    print(queue.get(), flush=True)
    time.sleep(600)
"""


def test_processes_end_when_the_one_that_started_them_is_killed(tmp_path):
    program = tmp_path / "parent.py"
    program.write_text(PARENT)
    with subprocess.Popen(
        [sys.executable, str(program)], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        os.kill(child, 0)
        parent.kill()
    for _ in range(300):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the process is still there after 30 seconds")
