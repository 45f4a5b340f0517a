"""The command that carries out a comparison: what it refuses, and one agenda from end to end through the script."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from lopt.config import load_run
from lopt.training import checkpoint, metrics
from scripts import paper_tables

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def in_use(monkeypatch):
    """JAX is in use already, and has the cores that it has."""
    monkeypatch.setattr(paper_tables, "prepare", lambda: None)


def refused(*argv):
    with pytest.raises(SystemExit) as error:
        paper_tables.main(["figure2", *argv])
    return str(error.value)


def test_help_names_tasks_budgets_and_files(capsys):
    with pytest.raises(SystemExit):
        paper_tables.main(["figure2", "--help"])
    out = capsys.readouterr().out
    for part in (
        "{cnn,cnn_rules,mlp,mlp_rules,rnn,rnn_rules,transformer,transformer_rules}",
        "paper, cpu, smoke",
        "--draw",
        "figure2.png",
        "README.md",
    ):
        assert part in out


def test_an_unknown_task_is_refused(capsys):
    assert refused("--task", "gan") == "2"
    assert "invalid choice: 'gan'" in capsys.readouterr().err


@pytest.mark.usefixtures("in_use")
def test_an_unknown_budget_or_rival_is_named(tmp_path):
    runs = ["--runs-dir", str(tmp_path / "runs")]
    assert (
        refused("--task", "mlp", "--budget", "gpu", *runs)
        == "paper_tables.py: no budget 'gpu'; the budgets are paper, cpu, smoke"
    )
    found = refused("--task", "rnn", "--budget", "smoke", "--rivals", "UNF", "NFN", *runs)
    assert found == "paper_tables.py: no rival 'NFN' in rnn; its rivals are SGDM, DeepSets, UNF"
    assert "nothing to draw: none of the 6 runs of mlp-smoke" in refused("--task", "mlp", "--budget", "smoke", "--draw", *runs)
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("in_use")
@pytest.mark.parametrize("task", ["rnn", "transformer"])
def test_a_data_set_that_is_not_there_is_named_before_anything_is_trained(task, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "empty"))
    found = refused("--task", task, "--runs-dir", str(tmp_path / "runs"))
    assert found.startswith("paper_tables.py: ")
    assert "lm1b" in found
    assert not (tmp_path / "runs").exists()


def test_where_the_report_goes(tmp_path):
    def place(*argv):
        parser = paper_tables.argument_parser()
        args = parser.parse_args(["figure2", "--task", "mlp", "--budget", "cpu", "--runs-dir", str(tmp_path), *argv])
        return paper_tables.report_dir(args, paper_tables.agenda_of(args))

    assert place() == tmp_path / "mlp-cpu-report"
    assert place("--out") == ROOT / "docs" / "reproduction" / "mlp-cpu"
    assert place("--out", ".") == Path()


INTERRUPTED = """
import signal, sys
from lopt.comparison.progress import AgendaProgress
from scripts import paper_tables
seen, update = [], AgendaProgress.update
def interrupting(self, done, detail):
    update(self, done, detail)
    seen.append(detail)
    if len(seen) == 14:  # in the second run
        signal.raise_signal(signal.SIGINT)
AgendaProgress.update = interrupting
sys.exit(paper_tables.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.compiles
@pytest.mark.long
def test_the_smoke_budget_from_end_to_end_with_an_interruption(tmp_path):
    """Ctrl-C in the second of two runs; the same command then ends with the thetas of an agenda that nothing happened to."""

    def run(name, *start, options=("--rivals", "DeepSets")):
        argv = ["figure2", "--task", "mlp", "--budget", "smoke", "--runs-dir", str(tmp_path / name), *options]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [sys.executable, *start, *argv],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    script = str(ROOT / "scripts" / "paper_tables.py")
    whole = run("whole", script)
    assert whole.returncode == 0, whole.stderr
    part = run("part", "-c", INTERRUPTED)
    assert part.returncode == 128 + signal.SIGINT, part.stdout + part.stderr
    assert re.search(r"DeepSets, seed 1: stopped after outer step 4 of 10, all saved; the same command goes on", part.stderr)
    assert "Traceback" not in part.stderr
    rest = run("part", script)
    assert rest.returncode == 0, rest.stderr
    assert "DeepSets, seed 0 | starting" not in rest.stdout
    for name in ("mlp-smoke-DeepSets-0", "mlp-smoke-DeepSets-1"):
        thetas = [checkpoint.load_theta(tmp_path / which / name) for which in ("whole", "part")]
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), *thetas)
        assert [record["outer_step"] for record in metrics.read(tmp_path / "part" / name)] == list(range(1, 11))
        assert load_run(tmp_path / "part" / name).seed == int(name[-1])
    report = tmp_path / "part" / "mlp-smoke-report"
    assert (report / "figure2.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((report / "table.json").read_text())
    assert [row["seeds"] for row in found["rows"]] == [2, 0, 0]
    assert found["planned"][:3] == ["SGDM, seed 0", "DeepSets, seed 0", "UNF, seed 0"]
    assert "Not run yet: SGDM, seed 0; UNF, seed 0; SGDM, seed 1; UNF, seed 1." in (report / "README.md").read_text()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "part").rglob("*") if report not in path.parents}
    drawn = run("part", script, options=("--draw", "--out", str(tmp_path / "out")))
    assert drawn.returncode == 0, drawn.stderr
    assert "2 of 2" in drawn.stdout
    assert json.loads((tmp_path / "out" / "table.json").read_text())["rows"] == found["rows"]
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "part").rglob("*") if report not in path.parents}
    assert after == before
