"""scripts/evaluate_suite.py: a suite of two toy tasks, from arguments to page; going on; what fails."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import evaluate_suite as script

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
    monkeypatch.setattr(script, "set_up", lambda: None)  # this process uses JAX already
    path = tmp_path / "toy.py"
    path.write_text(TOY)
    return ["--suite", str(path), "--out", str(tmp_path / "out"), "--jobs", "1"]


def test_a_suite_from_arguments_to_page_and_on(suite, tmp_path, capsys, monkeypatch):
    script.main(suite)
    said = capsys.readouterr().out
    assert "[4/4] digits4_autoencoder_2: sgdm in" in said
    assert "left" in said
    page = (tmp_path / "out" / "report.html").read_text()
    assert "2 optimizers on 2 tasks, 2 trials each" in page
    assert (tmp_path / "out" / "profile.png").read_bytes().startswith(b"\x89PNG")
    kept = sorted((tmp_path / "out" / "races").rglob("*.npz"))
    assert [path.stem for path in kept] == ["nadamw", "sgdm"] * 2

    # On a second call nothing but what is new is run.
    done = []
    compete = script.compete
    monkeypatch.setattr(
        script, "compete", lambda problem, entrant, *args: done.append(entrant.name) or compete(problem, entrant, *args)
    )
    kept[0].write_bytes(b"no race")
    with pytest.warns(UserWarning, match="is damaged and counts as missing"):
        script.main([*suite, "--optimizer", "sgdm", "small-mixture-deep-sets"])
    assert sorted(done) == ["nadamw", "small-mixture-deep-sets", "small-mixture-deep-sets"]
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert "3 optimizers on 2 tasks" in summary
    assert "| small-mixture-deep-sets |" in summary


def test_what_fails_on_one_task_leaves_the_others(suite, tmp_path, capsys, monkeypatch):
    compete = script.compete

    def fails(problem, entrant, *args):
        if problem.name == "digits4_autoencoder_2" and entrant.name == "sgdm":
            raise RuntimeError("out of memory")
        return compete(problem, entrant, *args)

    monkeypatch.setattr(script, "compete", fails)
    with pytest.raises(SystemExit) as ended:
        script.main([*suite, "--trials", "1", "--seeds", "1"])
    assert ended.value.code == 1
    assert "failed: sgdm on digits4_autoencoder_2: out of memory" in capsys.readouterr().out
    assert "on 1 tasks, 1 trials each (1 tasks are still to come)" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--optimizer", "adamm"], "there is no baseline 'adamm'; did you mean adam"),
        (["--optimizer", "adam:0.1"], "leave the learning rate out"),
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


@pytest.mark.slow
def test_several_processes_come_to_the_same(suite, tmp_path):
    script.main([*suite, "--trials", "1"])
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "scripts" / "evaluate_suite.py"), *suite[:2], "--trials", "1", "--jobs", "2"]
    command += ["--out", str(tmp_path / "two")]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr
    one, two = ((tmp_path / name / "ratios.csv").read_text() for name in ("out", "two"))
    assert one == two
