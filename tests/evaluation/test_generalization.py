import csv
import dataclasses
import io
import json
import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.colors import to_hex
from rich.console import Console

from lopt.evaluation.evaluate import EvaluationConfig
from lopt.evaluation.generalization import (
    AS_TRAINED,
    Condition,
    conditions,
    dataset_of,
    generalization_table,
    generalize,
    relative_loss,
    stages,
)
from lopt.evaluation.race import Competitor
from lopt.reporting.generalization_report import write_generalization
from lopt.reporting.plots import Look, png
from lopt.reporting.plots_heat_map import heat_map_figure
from lopt.runtime.progress import Stages
from lopt.task.base import TaskConfig
from lopt.task.families import FamilyConfig
from tasks.cnn import CNNConfig
from tasks.datasets.local import local_alternatives
from tasks.mlp import MLPConfig
from tasks.transformer import TransformerConfig

SMALL = MLPConfig(image_size=4, hidden=(4,), batch_size=8)
CONFIG = EvaluationConfig(steps=20, seeds=2, tuning_seeds=1, points_per_decade=1, refinements=0, baselines=("adam:0.03", "sgdm"))


def test_a_condition_changes_one_thing():
    found = {
        condition.name: condition for condition in conditions(MLPConfig(hidden=(32, 7)), datasets=("digits", "fashion_mnist"))
    }
    assert list(found) == [
        "as trained",
        "5 x steps",
        "width x 0.5",
        "width x 2",
        "fashion_mnist",
        "batch 32",
        "batch 512",
        "init x 0.33",
        "init x 3",
    ]
    plain = found[AS_TRAINED]
    assert found["width x 0.5"].task == MLPConfig(hidden=(16, 4))
    assert found["width x 2"].task == MLPConfig(hidden=(64, 14))
    assert found["fashion_mnist"].task == MLPConfig(hidden=(32, 7), dataset="fashion_mnist")
    assert found["batch 32"].task == MLPConfig(hidden=(32, 7), batch_size=32)
    for condition in found.values():
        changed = [
            field.name for field in dataclasses.fields(Condition) if getattr(condition, field.name) != getattr(plain, field.name)
        ]
        assert len(set(changed) - {"name", "kind"}) == (condition is not plain)


def test_widths_are_those_that_a_task_has():
    wide = conditions(TransformerConfig(), ["width"])[-1].task
    assert (wide.width, wide.mlp, wide.head_width, wide.heads) == (64, 256, 64, 4)
    assert conditions(CNNConfig(), ["width"])[1].task.channels == (8, 16)
    family = FamilyConfig(SMALL, init_scale=(0.5, 2.0))
    assert conditions(family, ["batch"])[-1].task == FamilyConfig(
        dataclasses.replace(SMALL, batch_size=32), init_scale=(0.5, 2.0)
    )
    assert [condition.kind for condition in conditions(TaskConfig())] == [AS_TRAINED, "horizon", "init", "init"]
    with pytest.raises(ValueError, match="there is no condition 'depth'; there are horizon"):
        conditions(SMALL, ["depth"])


def test_the_data_of_a_family_are_those_of_its_tasks():
    family = FamilyConfig(SMALL, init_scale=(0.5, 2.0))
    assert (dataset_of(SMALL), dataset_of(family), dataset_of(TaskConfig())) == ("digits", "digits", "")
    [_, other] = conditions(family, ["data"], ["digits", "fashion_mnist"])
    assert other.task == FamilyConfig(dataclasses.replace(SMALL, dataset="fashion_mnist"), init_scale=(0.5, 2.0))


def test_initial_weights_are_scaled():
    import jax

    plain, large = (Condition("c", "init", SMALL, init_scale=scale).make() for scale in (1.0, 3.0))
    key = jax.random.key(0)
    one = plain.init(key)["dense0"]["kernel"]
    scaled = large.start(key).params["dense0"]["kernel"]
    np.testing.assert_allclose(scaled, 3.0 * one, rtol=1e-5)


def setup(problem):
    """Two optimizers, of which one cannot be used for wide layers."""
    if problem.param_shapes()["dense0"]["kernel"].shape[1] > 4:
        raise ValueError("this theta is not\ncompatible with the weights")  # tables have it on one line
    return [Competitor("good", optax.sgd, jnp.float32(0.5)), Competitor("bad", optax.sgd, jnp.float32(jnp.inf))]


@pytest.fixture(scope="module")
def result():
    said = []
    chosen = [c for c in conditions(SMALL) if c.name in ("as trained", "5 x steps", "width x 2")]
    found = generalize(SMALL, setup, CONFIG, 0, chosen, progress=lambda message, weight: said.append((message, weight)))
    return found, said, chosen


def test_each_condition_is_raced_or_says_why_not(result):
    found, _, _ = result
    assert found.task == "digits4_mlp_4"
    assert found.races["5 x steps"].config.steps == 5 * 20
    assert found.races["5 x steps"].curves[0].losses.shape == (2, 100)
    assert found.found["width x 2"] == "this theta is not compatible with the weights"
    # The same seeds and batches as far as they go: what a condition does not change is the same.
    start, longer = found.races["as trained"].curves[0].losses, found.races["5 x steps"].curves[0].losses
    np.testing.assert_allclose(longer[:, :20], start, rtol=1e-4)
    assert found.optimizers == ["good", "bad", "tuned SGDM", "Adam 0.03"]


def test_figures_are_relative_to_the_reference_under_the_condition(result):
    found, _, _ = result
    race = found.races["as trained"]
    good, bad = (found.row(name, "as trained") for name in ("good", "bad"))
    assert relative_loss(race, good) == pytest.approx(good.final_loss.mean / race.target)
    assert math.isinf(relative_loss(race, bad))
    assert found.row("good", "width x 2") is None
    lines = generalization_table(found)
    assert lines[0][3] == "loss / Adam 0.03's"
    shown = {(line[0], line[1]): line for line in lines[1:]}
    assert shown["as trained", "Adam 0.03"][3:] == ["1.00", "1.00x", "0"]
    assert shown["as trained", "bad"][3:] == ["diverged", "never", "2 of 2"]
    assert shown["width x 2", "none: this theta is not compatible with the weights"][2:] == [""] * 4


def test_progress_adds_up_to_what_was_announced(result):
    _, said, chosen = result
    announced = stages(chosen, 2, CONFIG)
    assert announced == (1 + 5 + 1) * (2 + 4)
    done = sum(weight for _, weight in said)
    assert 0.7 * announced < done <= announced  # a given learning rate is not tuned
    assert all(message.startswith(("as trained: ", "5 x steps: ", "width x 2: ")) for message, _ in said)


def test_the_heat_map_says_what_the_table_does(result):
    found, _, _ = result
    for look in (Look(), Look(narrow=True), Look(dark=True)):
        figure = heat_map_figure(found, look)
        texts = {text.get_text() for text in figure.axes[0].texts}
        row = found.row("good", "as trained")
        assert any(text.endswith(f"\n{relative_loss(found.races['as trained'], row):.2f}") for text in texts)
        assert "never\ndiverged" in texts
        assert "none" in texts
        ratios = figure.axes[0].get_images()[0].get_array()
        assert ratios.shape == ((3, 3))
        assert np.isnan(np.asarray(ratios.filled(np.nan))).sum() == 3  # no race for the wide layers
        assert to_hex(figure.get_facecolor()) == look.paper.lower()
        assert png(figure, dpi=40).startswith(b"\x89PNG")


def test_the_files_are_written(result, tmp_path):
    found, _, _ = result
    paths = write_generalization(found, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)
    assert [path.suffix for path in paths] == [".html", ".md", ".csv", ".json", ".png"]
    read = list(csv.reader(io.StringIO((tmp_path / "generalization.csv").read_text())))
    assert read == generalization_table(found)
    stored = json.loads((tmp_path / "generalization.json").read_text())
    assert [condition["name"] for condition in stored["conditions"]] == ["as trained", "5 x steps", "width x 2"]
    assert stored["conditions"][0]["rows"][1]["relative_loss"] is None  # infinite, as it diverged
    assert stored["conditions"][2]["error"].startswith("this theta")
    assert (stored["seed"], stored["conditions"][0]["task"]["hidden"]) == (0, [4])
    assert "<summary>Conditions</summary>" in (tmp_path / "generalization.html").read_text()
    assert "generalization.png" in (tmp_path / "generalization.md").read_text()
    assert (tmp_path / "generalization.html").read_text().count("data:image/png") == 4


def test_where_nothing_is_raced_there_is_no_picture(result, tmp_path):
    found, _, _ = result
    nothing = dataclasses.replace(found, found={name: "no data" for name in found.found})
    with pytest.raises(ValueError, match="nothing to draw"):
        heat_map_figure(nothing)
    assert not any(path.suffix == ".png" for path in write_generalization(nothing, tmp_path))


def test_other_data_are_of_the_same_kind_and_here(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    before = local_alternatives("digits")
    assert "python_docs" not in before
    assert "svhn_cropped" not in before
    (tmp_path / "datasets" / "svhn-cropped").mkdir(parents=True)
    assert set(local_alternatives("digits")) == {*before, "svhn_cropped"}
    assert "digits" in local_alternatives("mnist")
    assert local_alternatives("./mine.npz") == ()


def test_stages_show_what_is_left():
    now, output = [0.0], io.StringIO()
    with Stages(10.0, console=Console(file=output, width=60), clock=lambda: now[0]) as view:
        view.stage("first", 2.0)
        now[0] = 30.0
        view.stage("second", 3.0)
        now[0] = 50.0
        view.stage("third", 20.0)
    assert output.getvalue().splitlines() == [
        "  0% | first",
        " 20% | second | about 2:00 left",
        " 50% | third | about 0:50 left",
    ]


def test_stages_draw_a_bar_on_a_terminal():
    output = io.StringIO()
    console = Console(file=output, width=60, force_terminal=True, _environ={"TERM": "xterm"})
    with Stages(2.0, console=console, clock=lambda: 0.0) as view:
        view.stage("only", 1.0)
    assert "only" in output.getvalue()


@pytest.mark.slow
@pytest.mark.compiles
def test_the_script_makes_the_table(tmp_path):
    from scripts import evaluate as script

    arguments = ["--task", "mlp", "--optimizer", "adam:0.03", "sgdm:0.1", "--steps", "10", "--seeds", "2", "--task.hidden", "4"]
    arguments += ["--task.image-size", "4", "--out", str(tmp_path), "--generalize", "horizon"]
    args, task = script.parse(arguments)
    output = io.StringIO()
    [paths] = script.generalizations(args, task, Console(file=output, width=100))
    assert paths[0].name == "generalization.html"
    read = list(csv.DictReader(io.StringIO((tmp_path / "generalization.csv").read_text())))
    assert {line["condition"] for line in read} == {"as trained", "5 x steps"}
    assert {line["optimizer"] for line in read} == {"Adam 0.03", "SGDM 0.1"}
    assert " 5 x steps: racing" in output.getvalue().replace("|", "")
