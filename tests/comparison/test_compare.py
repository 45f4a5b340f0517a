"""Comparisons of one's own: from a config file on any task, and from runs that are there."""

import dataclasses
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from lopt.comparison.compare import compare
from lopt.comparison.config import Rival, agenda_of_runs
from lopt.config import ConfigError
from lopt.optimizers.momentum import LearnedSGDMConfig
from lopt.training.trainer import meta_train
from scripts import compare as script
from scripts import evaluate
from tests.comparison.toy import EXPERIMENT, ToyConfig

ROOT = Path(__file__).resolve().parents[2]
SGDM = dataclasses.replace(EXPERIMENT, optimizer=LearnedSGDMConfig(), outer_steps=2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three runs on the toy: two that differ by their seed alone, and another."""
    directory = tmp_path_factory.mktemp("runs")
    for name, experiment in (
        ("sgdm-0", SGDM),
        ("sgdm-1", dataclasses.replace(SGDM, seed=1)),
        ("slow-sgdm", dataclasses.replace(SGDM, optimizer=LearnedSGDMConfig(alpha=0.01))),
    ):
        meta_train(experiment, directory / name, progress=False)
    return directory


def test_runs_that_differ_by_their_seed_alone_are_pooled(runs, tmp_path):
    directories = [runs / name for name in ("sgdm-0", "slow-sgdm", "sgdm-1")]
    agenda = agenda_of_runs(directories, tmp_path / "races", "the command", {"seeds": 2, "baselines": ("sgd:0.1",)})
    assert [(run.label, run.seed, run.directory.name) for run in agenda.runs] == [
        ("sgdm", 0, "sgdm-0"),
        ("sgdm", 1, "sgdm-1"),
        ("slow_sgdm", 0, "slow-sgdm"),
    ]
    found, paths = compare(agenda, tmp_path / "out", train=False, console=Console(file=io.StringIO()))
    assert {label: len(entries) for label, entries in found.entries.items()} == {"sgdm": 2, "slow_sgdm": 1}
    rows = json.loads((tmp_path / "out" / "table.json").read_text())["rows"]
    assert [(row["label"], row["seeds"], row["raced"]) for row in rows] == [
        ("sgdm", 2, 4),
        ("slow_sgdm", 1, 2),
        ("sgd 0.1", 0, 2),
    ]
    assert paths[0].name == "comparison.png"
    text = paths[1].read_text()
    assert "Again: `the command`." in text
    assert "paper" not in text


def test_the_report_says_the_whole_command_that_made_it(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "prepare", lambda: None)  # JAX is in use already
    argv = ["--run-dir", *(str(runs / name) for name in ("sgdm-0", "sgdm-1")), "--optimizer", "sgd:0.1", "--steps", "5"]
    argv += ["--seeds", "2", "--out", str(tmp_path / "out")]
    evaluate.main(argv)
    assert f"Again: `python scripts/evaluate.py {' '.join(argv)}`." in (tmp_path / "out" / "README.md").read_text()


def test_runs_that_cannot_be_pooled_are_named(runs, tmp_path):
    other = tmp_path / "other"
    meta_train(dataclasses.replace(SGDM, task=ToyConfig(shift=0.5), outer_steps=0), other, progress=False)
    with pytest.raises(
        ConfigError, match=r"sgdm-0 and .*other were meta-trained on different tasks.* shift is 0.0 in one, 0.5 in"
    ):
        agenda_of_runs([runs / "sgdm-0", other], tmp_path, "")
    with pytest.raises(ConfigError, match="are one meta-training with one seed, 0"):
        agenda_of_runs([runs / "sgdm-0", runs / "sgdm-0"], tmp_path, "")


@pytest.mark.parametrize("option", [["--generalize"], ["--seed", "1"], ["--checkpoint", "newest"]])
def test_what_is_for_one_run_is_refused(option, capsys):
    with pytest.raises(SystemExit):
        evaluate.parse(["--run-dir", "a", "b", *option])
    assert f"{option[0]} is for one run" in capsys.readouterr().err


def planned(*argv):
    return script.agenda_of(script.argument_parser().parse_args(argv))


def test_the_plan_of_a_config_file(tmp_path):
    example = str(ROOT / "examples" / "comparison.py")
    agenda = planned("--config", example, "--runs-dir", str(tmp_path))
    assert (agenda.name, agenda.picture, len(agenda.runs)) == ("comparison-small", "comparison.png", 9)
    assert agenda.command == f"python scripts/compare.py --config {example} --budget small"
    (tmp_path / "own.py").write_text("from tasks.mlp import MLPConfig\ndef make_task(width: int = 3):\n    return MLPConfig()\n")
    own = planned("--config", example, "--budget", "smoke", "--task", f"{tmp_path}/own.py:make_task")
    assert {run.experiment.task.function for run in own.runs} == {"own.py:make_task"}
    assert own.runs[0].directory.name.endswith("own_py_make_task-smoke-SGDM-0")
    with pytest.raises(ValueError, match="no budget 'large'; the budgets are small, smoke"):
        planned("--config", example, "--budget", "large")
    with pytest.raises(ConfigError, match=r"config is a MetaTrainConfig, not a .*ComparisonConfig.*scripts/meta_train.py"):
        planned("--config", str(ROOT / "configs" / "smoke.py"))


def test_a_rival_may_be_any_optimizer():
    own = LearnedSGDMConfig(alpha=0.5)
    assert Rival("own", optimizer=own).optimizer_like(EXPERIMENT.optimizer) is own
    with pytest.raises(ValueError, match="rival 'own' is given a network and an optimizer"):
        Rival("own", EXPERIMENT.optimizer.network, own)
    same = EXPERIMENT.optimizer
    for like in (same, same.parts):  # SGDM is the paper's rule without f, however that is written
        assert Rival("SGDM").optimizer_like(like) == LearnedSGDMConfig(alpha=same.alpha, g0=same.g0)
