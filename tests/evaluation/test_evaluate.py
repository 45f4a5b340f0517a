"""Evaluations from end to end, by function and by script."""

import dataclasses
import io
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from lopt import config
from lopt.evaluation.evaluate import Evaluation, EvaluationConfig, evaluate
from lopt.evaluation.race import Competitor, race
from lopt.reporting.report import summary_markdown, terminal_table
from lopt.training import checkpoint
from lopt.training.metrics import MetricsWriter
from tests.evaluation.problems import SMALL, needs_value, quadratic, quadratic_evaluation


@pytest.mark.parametrize("field", ["steps", "seeds", "tuning_seeds", "points_per_decade", "window", "measurements"])
def test_a_config_out_of_range_names_the_field(field):
    with pytest.raises(ValueError, match=f"evaluation.{field}"):
        EvaluationConfig(**{field: 0})


def test_a_config_names_baselines_that_exist():
    with pytest.raises(ValueError, match="'adan_'"):
        EvaluationConfig(baselines=("adam", "adan_"))
    with pytest.raises(ValueError, match=r"names these twice: Adam 0\.001"):
        EvaluationConfig(baselines=("adam", "adam:1e-3", "adam:0.001"))
    with pytest.raises(ValueError, match="empty"):
        EvaluationConfig(baselines=())
    with pytest.raises(ValueError, match=r"evaluation.points_per_decade must be at most 10, got 11"):
        EvaluationConfig(points_per_decade=11)
    for field, value in (("max_extensions", -1), ("refinements", -1), ("cost_turns", -1)):
        with pytest.raises(ValueError, match=field):
            EvaluationConfig(**{field: value})
    for momenta in ((), (0.5, 0.5), (1.0,), (-0.1,)):
        with pytest.raises(ValueError, match="momenta"):
            EvaluationConfig(momenta=momenta)
    for schedules in ((), ("cosine", "cosine"), ("linear",)):
        with pytest.raises(ValueError, match="schedules must be some of constant, cosine"):
            EvaluationConfig(schedules=schedules)


@pytest.mark.parametrize(("steps", "window"), [(2000, 100), (1000, 100), (300, 30), (5, 1), (1, 1)])
def test_the_window_is_at_most_a_tenth_of_the_steps(steps, window):
    assert EvaluationConfig(steps=steps).smoothing == window


# --- From end to end


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return quadratic_evaluation()


def test_an_evaluation_races_the_tuned_baselines(evaluation):
    assert [curve.name for curve in evaluation.curves] == [
        "meta-trained",
        "before meta-training",
        "broken",
        "tuned Adam",
        "tuned SGDM",
    ]
    assert [curve.reference for curve in evaluation.curves] == [False, False, False, True, False]
    adam = evaluation.curves[3].losses
    assert evaluation.target == pytest.approx(adam[:, -6:].mean(), rel=1e-5)
    scores = dict(evaluation.tunings["Adam"].tried)
    assert scores[evaluation.tunings["Adam"].best] == min(scores.values())
    # Racing at the tuned learning rate, on other seeds, must come out near the tuning score.
    assert 0.2 < evaluation.target / min(scores.values()) < 5.0
    still = evaluation.curves[1].losses
    assert still[:, -1].mean() > 0.5 * still[:, 0].mean()
    assert [row.diverged for row in evaluation.rows] == [0, 0, 3, 0, 0]
    assert all(curve.seconds_per_step > 0 for curve in evaluation.curves)


def test_an_evaluation_can_be_repeated(evaluation):
    learned = [Competitor("meta-trained", needs_value, jnp.float32(0.01))]
    config = dataclasses.replace(evaluation.config, baselines=("sgdm",))
    said = []
    again = evaluate(quadratic(10.0, noise=0.05), learned, config, seed=0, progress=said.append)
    np.testing.assert_array_equal(again.curves[0].losses, evaluation.curves[0].losses)
    np.testing.assert_array_equal(again.curves[1].losses, evaluation.curves[4].losses)
    assert again.curves[1].reference
    assert [line.split(":")[0] for line in said] == [
        "tuning the learning rate of SGDM",
        "racing meta-trained",
        "racing tuned SGDM",
        "timing the optimizers' own steps beside Adam's",
    ]


def test_a_given_learning_rate_is_not_tuned():
    said = []
    config = dataclasses.replace(SMALL, baselines=("sgd:0.05", "adamw:0.2"), cost_turns=0)
    given = evaluate(quadratic(1.0), [], config, seed=0, progress=said.append)
    assert [curve.name for curve in given.curves] == ["sgd 0.05", "adamw 0.2"]
    assert given.curves[0].reference
    assert not given.tunings
    assert not given.costs
    assert [line.split(":")[0] for line in said] == ["racing sgd 0.05", "racing adamw 0.2"]
    losses = given.curves[0].losses
    np.testing.assert_allclose(losses[:, -1] / losses[:, 0], (1 - 0.05) ** (2 * 19), rtol=1e-4)
    text = summary_markdown(given)
    assert "- sgd: **0.05**, as given." in text
    assert "- adamw: **0.2**, as given." in text
    assert "tuning:" not in text
    assert "They were not measured." in text
    output = io.StringIO()
    Console(file=output, width=100).print(terminal_table(given))
    assert "tuned learning rates: none" in output.getvalue()


# --- The script

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run_script(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "evaluate.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_the_script_evaluates_a_run(tmp_path):
    from lopt.estimators.pes import PESConfig
    from lopt.optimizers.momentum import LearnedSGDMConfig
    from lopt.training.trainer import MetaTrainConfig
    from lopt.unroll import UnrollConfig
    from tasks.mlp import MLPConfig

    experiment = MetaTrainConfig(
        task=MLPConfig(image_size=4, hidden=(4,), batch_size=8),
        optimizer=LearnedSGDMConfig(alpha=0.001, g0=0.0),
        estimator=PESConfig(particles=3),
        unroll=UnrollConfig(horizon=20, truncation=10),
        evaluation=EvaluationConfig(steps=7, seeds=5, tuning_seeds=1, baselines=("sgdm",)),
    )
    config.save(experiment, tmp_path / config.CONFIG_FILE)
    checkpoint.save(tmp_path, 2, {"theta": {"alpha": jnp.float32(0.1), "g0": jnp.float32(0.9)}})
    with MetricsWriter(tmp_path) as metrics:
        for step in (1, 2, 3):  # killed after logging the third step, before its checkpoint
            metrics.write({"outer_step": step, "meta_loss": 2.0, "gradient_norm": 1.0})

    result = run_script("--run-dir", tmp_path, "--steps", 80, "--seeds", 3)
    assert result.returncode == 0, result.stderr
    for name in ("summary.md", "curves.png", "curves.npz", "meta_training.png", "report.html", "table.csv"):
        assert (tmp_path / name).exists()
        assert str(tmp_path / name) in result.stdout
    assert re.search(r"meta-trained +\d", result.stdout)
    text = (tmp_path / "summary.md").read_text()
    assert "2 outer steps of 60 inner steps each, 120 in all" in text
    with np.load(tmp_path / "curves.npz") as stored:
        assert list(stored["names"]) == ["meta-trained", "before meta-training", "tuned SGDM"]
        assert stored["losses"].shape == (3, 3, 80)
        # theta after meta-training is SGDM at 0.1, before it SGD at 0.001: from the same start, the latter hardly moves.
        np.testing.assert_array_equal(stored["losses"][0, :, 0], stored["losses"][1, :, 0])
        assert stored["losses"][0, :, -5:].mean() < stored["losses"][1, :, -5:].mean() - 0.1


def test_the_script_says_what_is_wrong(tmp_path):
    missing = run_script("--run-dir", tmp_path)
    assert missing.returncode == 1
    assert "config.json" in missing.stderr
    assert "Traceback" not in missing.stderr
    zero = run_script("--run-dir", tmp_path, "--steps", "0")
    assert zero.returncode == 2
    assert "--steps" in zero.stderr


def test_the_script_evaluates_any_task_without_a_run(tmp_path):
    arguments = ("--task", "mlp", "--optimizer", "sgdm:0.1", "lion:0.01", "--steps", 20, "--seeds", 2)
    fields = ("--task.hidden", 6, 5, "--task.image-size", 4, "--task.activation", "tanh", "--out", tmp_path / "new" / "folder")
    result = run_script(*arguments, *fields)
    assert result.returncode == 0, result.stderr
    assert "tuning" not in result.stdout
    assert re.search(r"digits4_mlp_6_5: 20 inner steps, 2 seeds", result.stdout)
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == [
        "curves.npz",
        "curves.png",
        "held_out.png",
        "report.html",
        "summary.md",
        "table.csv",
        "table.json",
        "table.md",
    ]
    assert json.loads((tmp_path / "new" / "folder" / "table.json").read_text())["configs"]["task"]["hidden"] == [6, 5]
    with np.load(tmp_path / "new" / "folder" / "curves.npz") as stored:
        assert list(stored["names"]) == ["SGDM 0.1", "lion 0.01"]
        assert stored["losses"].shape == (2, 2, 20)
        assert stored["losses"][1, :, -1].mean() < stored["losses"][1, :, 0].mean() - 0.1


def test_the_script_races_meta_trained_optimizers_on_other_tasks(tmp_path, monkeypatch):
    from lopt.estimators.pes import PESConfig
    from lopt.networks.update import DeepSetsConfig, UNFConfig
    from lopt.optimizers.momentum import LearnedMomentumConfig
    from lopt.training.trainer import MetaTrainConfig
    from scripts import evaluate as script
    from tasks.mlp import MLPConfig

    other = MLPConfig(image_size=4, hidden=(5, 4)).make()
    for name, network in (("pointwise", DeepSetsConfig((4,))), ("unf", UNFConfig((4,)))):
        task, optimizer = MLPConfig(image_size=4, hidden=(6,)), LearnedMomentumConfig(network=network)
        experiment = MetaTrainConfig(task=task, optimizer=optimizer, estimator=PESConfig())
        (tmp_path / name).mkdir()
        config.save(experiment, tmp_path / name / config.CONFIG_FILE)
        theta = jax.jit(optimizer.make(task.make().spec).init)(jax.random.key(0))
        checkpoint.save(tmp_path / name, 2, {"theta": theta})
    pointwise = str(tmp_path / "pointwise")
    found = script.trained_optimizer(pointwise, other, "best")
    assert found.name == pointwise
    curves = race(other, [found], jax.random.key(0), steps=3, seeds=1)
    assert np.isfinite(curves[0].losses).all()
    with pytest.raises(
        ValueError, match=r"'.*unf' is not compatible with the weights of 'digits4_mlp_5_4': .* not shared by role"
    ):
        script.trained_optimizer(str(tmp_path / "unf"), other, "best")
    shipped = script.trained_optimizer("lopt-direction-unf", other, "best")
    assert np.isfinite(race(other, [shipped], jax.random.key(0), steps=3, seeds=1)[0].losses).all()
    # The best of a run by its held-out evaluations comes before its newest, unless that is asked for.
    best = jax.tree.map(jnp.zeros_like, found.theta)
    checkpoint.save(tmp_path / "pointwise" / "best", 1, {"theta": best})
    assert float(script.trained_optimizer(pointwise, other, "best").theta["alpha"]) == 0
    assert float(script.trained_optimizer(pointwise, other, "newest").theta["alpha"]) > 0
    monkeypatch.chdir(tmp_path)
    names = ["unf", "adam", "missing/run", "lopt-direction-unf", "hf://owner/name"]
    args, _ = script.parse(["--task", "mlp", "--optimizer", *names, "--steps", "7"])
    given, trained = script.overrides(args)
    assert given == {"steps": 7, "baselines": ("adam",)}
    assert trained == ["unf", "missing/run", "lopt-direction-unf", "hf://owner/name"]


@pytest.mark.slow
@pytest.mark.compiles
def test_the_script_evaluates_a_mixture_on_each_of_its_tasks(tmp_path):
    from lopt.estimators.pes import PESConfig
    from lopt.optimizers.momentum import LearnedSGDMConfig
    from lopt.task.families import MixtureConfig
    from lopt.training.trainer import MetaTrainConfig
    from scripts import evaluate as script
    from tasks.mlp import MLPConfig

    tasks = tuple(MLPConfig(image_size=4, hidden=hidden, batch_size=8) for hidden in ((3,), (4, 3)))
    evaluation = EvaluationConfig(steps=5, seeds=2, tuning_seeds=1, measurements=1, cost_turns=0, baselines=("sgd:0.1",))
    experiment = MetaTrainConfig(
        task=MixtureConfig(tasks), optimizer=LearnedSGDMConfig(), estimator=PESConfig(particles=1), evaluation=evaluation
    )
    config.save(experiment, tmp_path / config.CONFIG_FILE)
    checkpoint.save(tmp_path, 1, {"theta": {"alpha": jnp.float32(0.1), "g0": jnp.float32(0.9)}})
    with MetricsWriter(tmp_path) as metrics:
        metrics.write({"outer_step": 1, "meta_loss": 2.0, "gradient_norm": 1.0})
    args, _ = script.parse(["--run-dir", str(tmp_path)])
    found = list(script.of_run(args, Console(file=io.StringIO())))
    assert [one.task for one, _ in found] == [task.make().name for task in tasks]
    for one, paths in found:
        assert paths[0] == tmp_path / one.task / "summary.md"
        assert paths[0].is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "mpl"], "no task 'mpl', did you mean mlp"),
        (["--task", "mlp", "--task.hiden", "4"], "--task.hidden"),
        (["--task", "mlp", "--task.hidden", "0"], r"MLPConfig.hidden\[0\]"),
        (["--task", "mlp", "--task.hidden", "wide"], "wide"),
        (["--task", "mlp", "--run-dir", "x"], "not allowed with"),
        (["--run-dir", "x", "--task.hidden", "4"], "unrecognized arguments: --task.hidden 4"),
        (["--task", "mlp", "--seeds", "none"], "'none' is not a whole number"),
        (["--task", "mlp", "--data", "digits"], "--data names what --generalize data races on"),
        (["--task", "mlp", "--generalize", "width", "--data", "digits"], "--data names what --generalize data races on"),
        ([], "--run-dir --task is required"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, capsys):
    from scripts import evaluate as script

    with pytest.raises(SystemExit) as error:
        script.parse(arguments)
    assert error.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_without_the_hubs_client_it_says_what_to_install(monkeypatch):
    from scripts import evaluate as script

    monkeypatch.setattr(script, "prepare", lambda: None)  # settings of the process, which other tests share
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(SystemExit, match=r"evaluate.py: the Hub needs its client: pip install"):
        script.main(["--task", "mlp", "--optimizer", "adam:0.1", "hf://owner/name"])


def test_a_trained_optimizer_alone_races_against_the_default_rivals():
    from scripts import evaluate as script

    args, _ = script.parse(["--task", "mlp", "--optimizer", "lopt-direction-unf"])
    given, trained = script.overrides(args)
    assert (given, trained) == ({}, ["lopt-direction-unf"])
    given, trained = script.overrides(script.parse(["--task", "mlp", "--optimizer", "lopt-direction-unf", "lion"])[0])
    assert (given, trained) == ({"baselines": ("lion",)}, ["lopt-direction-unf"])


def test_a_misspelt_shipped_name_is_told_the_right_one():
    from scripts import evaluate as script

    with pytest.raises(
        config.ConfigError, match="no optimizer 'lopt-direction-unv'; did you mean the shipped 'lopt-direction-unf'"
    ):
        script.overrides(script.parse(["--task", "mlp", "--optimizer", "adam", "lopt-direction-unv"])[0])


def test_help_lists_the_fields_of_the_task(capsys):
    from scripts import evaluate as script

    for arguments, shown, hidden in (
        ([], "--run-dir RUN", "Units of each"),
        (["--task", "mlp"], "Units of each hidden layer", "tanh,step"),
    ):
        with pytest.raises(SystemExit) as error:
            script.parse([*arguments, "--help"])
        assert error.value.code == 0
        text = capsys.readouterr().out
        assert shown in text
        assert hidden not in text
