"""`python -m lopt` in a process that has no clone beside it: the package alone, and a task of one's own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lopt import __main__ as program
from lopt.commands.evaluate import by_hand_and_trained, place_of
from lopt.config import ConfigError

ROOT = Path(__file__).resolve().parents[2]
TASK = """
import jax, jax.numpy as jnp, numpy as np
import lopt

def make_task(width: int = 8):
    def init(key):
        return {"w0": jax.random.normal(key, (3, width)), "w1": jnp.zeros(width)}

    def loss(params, key, batch):
        return jnp.mean(jnp.square(jnp.tanh(batch["x"] @ params["w0"]) @ params["w1"] - batch["y"]))

    x = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    return lopt.task_from_loss(init, loss, {"x": x, "y": x.sum(axis=1)}, name="sums", batch_size=16)
"""


@pytest.fixture
def alone(tmp_path):
    """Runs `python -m lopt` where lopt is importable and nothing of the clone is."""
    site, work = tmp_path / "site", tmp_path / "work"
    shutil.copytree(ROOT / "lopt", site / "lopt", ignore=shutil.ignore_patterns("__pycache__"))
    work.mkdir()
    (work / "my_task.py").write_text(TASK)

    def run(*argv):
        # An editable install of the clone would put it on the path too; -S would leave JAX out as well.
        script = (
            f"import sys; sys.path[:] = [{str(site)!r}] + [p for p in sys.path if p not in ('', {str(ROOT)!r})]; "
            "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in str(f).lower()]; sys.argv[0] = 'lopt'; "
            "import runpy; runpy.run_module('lopt', run_name='__main__')"
        )
        environment = {**os.environ, "PYTHONPATH": "", "LOPT_CACHE_DIR": str(tmp_path / "cache"), "COLUMNS": "120"}
        return subprocess.run(
            [sys.executable, "-c", script, *argv], cwd=work, env=environment, capture_output=True, text=True, timeout=500
        )

    return run


def test_without_a_command_it_says_which_there_are(capsys):
    program.main([])
    assert "python -m lopt evaluate --task" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="there is no command 'train'"):
        program.main(["train"])


def test_load_lists_and_shows(capsys):
    program.main(["load"])
    assert "lopt-direction-unf" in capsys.readouterr().out
    program.main(["load", "lopt-direction-unf"])
    shown = capsys.readouterr().out
    assert "not for:" in shown
    assert "tx = lopt.load('lopt-direction-unf', num_steps=N, spec=lopt.infer_spec(loss, params, batch))" in shown
    with pytest.raises(SystemExit, match=r"python -m lopt load: .*did you mean 'lopt-direction-unf'"):
        program.main(["load", "lopt-direction-unv"])


def test_names_of_optimizers_are_told_apart():
    assert by_hand_and_trained(["adam", "lopt-direction-unf", "adamw:1e-3"]) == (("adam", "adamw:1e-3"), ["lopt-direction-unf"])
    with pytest.raises(ConfigError, match="did you mean the shipped 'lopt-direction-unf'"):
        by_hand_and_trained(["lopt-direction-unv"])
    assert place_of("mlp") == Path("runs/evaluate/mlp")
    assert place_of("/a/b/my_task.py:make_task") == Path("runs/evaluate/my_task-make_task")


@pytest.mark.slow
def test_inspect_and_evaluate_on_a_task_of_ones_own(alone, tmp_path):
    inspected = alone("inspect", "--task", "my_task.py:make_task", "--task.width", "5")
    assert inspected.returncode == 0, inspected.stderr
    assert "(3, 5)" in inspected.stdout
    options = ("--optimizer", "adam:0.1", "lopt-direction", "--steps", "5", "--seeds", "2")
    raced = alone("evaluate", "--task", "my_task.py:make_task", *options)
    assert raced.returncode == 0, raced.stdout + raced.stderr
    table = json.loads((tmp_path / "work" / "runs" / "evaluate" / "my_task-make_task" / "table.json").read_text())
    assert {row["name"] for row in table["rows"]} == {"lopt-direction", "Adam 0.1"}
    refused = alone("inspect", "--task", "mlp")
    assert refused.returncode != 0
    assert "none, as tasks/ is not beside lopt" in refused.stderr
