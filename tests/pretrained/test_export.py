"""From a run to a folder: what the card says is what the run was."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lopt
from lopt import config
from lopt.config.importing import import_place
from lopt.estimators.pes import PESConfig
from lopt.networks.update import DeepSetsConfig
from lopt.optimizers.momentum import LearnedMomentumConfig
from lopt.pretrained.card import CardError, read_card, read_folder
from lopt.pretrained.export import export_run, public_recipe
from lopt.runtime.environment import record_start
from lopt.task.named import ImportedTaskConfig
from lopt.training import checkpoint
from lopt.training.metrics import MetricsWriter
from lopt.training.trainer import MetaTrainConfig, initial_theta
from lopt.unroll import UnrollConfig
from scripts import export_optimizer
from tasks.mlp import MLPConfig

EXPERIMENT = MetaTrainConfig(
    task=MLPConfig(image_size=4, hidden=(4,)),
    optimizer=LearnedMomentumConfig(network=DeepSetsConfig((4,))),
    estimator=PESConfig(particles=2),
    unroll=UnrollConfig(horizon=6, truncation=3),
    outer_steps=2,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What a meta-training leaves, killed after it had logged a third step."""
    path = tmp_path_factory.mktemp("runs") / "run"
    config.claim_run_dir(path, EXPERIMENT)
    record_start(path, 0)
    theta = jax.tree.map(lambda leaf: leaf + 0.1, initial_theta(0, EXPERIMENT.optimizer.make(EXPERIMENT.task.make().spec)))
    checkpoint.save(path, 2, {"theta": theta})
    with MetricsWriter(path) as metrics:
        for step in (1, 2, 3):
            metrics.write({"outer_step": step, "inner_steps_per_s": 0.001})
    return path


def table(names):
    def estimate(mean):
        return {"mean": mean, "error": 0.1, "count": 3}

    row = {"seeds": 3, "diverged": 0, "final_loss": estimate(0.5), "test": {"accuracy": estimate(0.9)}, "steps": estimate(20.0)}
    rows = [{**row, "name": name, "speedup": estimate(1.5), "reference": name == names[-1], "cost": None} for name in names]
    return {
        "task": "some_task",
        "config": {"steps": 30, "seeds": 3},
        "target": 0.6,
        "rows": rows,
        "environment": {"device": "cpu", "packages": {"jax": "1"}, "git": None},
    }


def test_the_card_is_of_the_run(run, tmp_path):
    card = export_run(run, tmp_path / "own", name="own", summary="s", good_for="g", not_for="n")
    assert read_card(tmp_path / "own") == card
    assert config.from_dict(card.recipe) == EXPERIMENT
    assert (card.tasks, card.data) == (["digits4_mlp_4"], ["digits"])
    assert card.specs["digits4_mlp_4"]["leaves"]["dense1/kernel"] == "hidden0 classes!"
    assert card.seen == {"digits4_mlp_4": {"inputs": 16, "weights": 118, "losses": [pytest.approx(np.log(10)), None]}}
    budget = card.budget
    assert (budget["outer_steps"], budget["theta_of_outer_step"], budget["device"]) == (2, 2, "cpu")
    assert budget["inner_steps"] == 2 * 2 * 2 * 3  # outer steps, particles, antithetic, truncation
    assert budget["hours"] == pytest.approx(24 / 0.001 / 3600, rel=1e-2)
    assert {"jax", "python"} <= card.versions.keys()
    theta = checkpoint.load_theta(run)
    np.testing.assert_array_equal(
        read_folder(tmp_path / "own")[1]["network"]["last"]["kernel"], theta["network"]["last"]["kernel"]
    )
    params = {"w": jnp.ones((3, 2))}
    first, second = (lopt.load(source) for source in (run, tmp_path / "own"))
    np.testing.assert_array_equal(
        first.update(params, first.init(params), params)[0]["w"], second.update(params, second.init(params), params)[0]["w"]
    )


@pytest.mark.parametrize("name", ["meta-trained, best (outer step 1)", "own"])
def test_results_are_those_of_a_race(run, tmp_path, name):
    race = {**table([name, "sgdm", "tuned Adam"]), "task": "digits4_mlp_4"}
    (tmp_path / "table.json").write_text(json.dumps(race))
    card = export_run(run, tmp_path / "own", name="own", results=[tmp_path / "table.json"])
    (race,) = card.results
    assert (race["task"], race["steps"], race["seeds"], race["target"]) == ("digits4_mlp_4", 30, 3, 0.6)
    assert card.seen["digits4_mlp_4"]["losses"][1] == 0.5
    assert list(race["optimizers"]) == ["this", "sgdm", "tuned Adam"]
    assert race["optimizers"]["this"]["speed_up"] == {"mean": 1.5, "error": 0.1, "count": 3}
    assert race["optimizers"]["this"]["test_accuracy"]["mean"] == 0.9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not the table.json of an evaluation"),
        (json.dumps({"rows": []}), "is not the table.json of an evaluation"),
        (json.dumps(table(["sgdm", "tuned Adam"])), "none of its optimizers .*sgdm.* should be one, of"),
    ],
)
def test_results_of_something_else_are_refused(run, tmp_path, text, message):
    (tmp_path / "table.json").write_text(text)
    with pytest.raises(CardError, match=f"table.json.*{message}"):
        export_run(run, tmp_path / "own", name="own", results=[tmp_path / "table.json"])
    assert not (tmp_path / "own").exists()


def test_a_run_goes_to_a_repository(run, monkeypatch):
    sent = {}

    def upload(folder, address, card, private):
        sent.update(card=card, read=read_folder(folder)[0], address=address, private=private)

    monkeypatch.setattr("lopt.pretrained.hub.upload", upload)
    assert lopt.push(run, "owner/name", summary="s", private=True) == "hf://owner/name"
    assert sent["card"] == sent["read"]
    assert (sent["card"].name, sent["card"].summary, sent["private"]) == ("name", "s", True)


def test_the_script(run, tmp_path, capsys):
    arguments = ["--run-dir", str(run), "--name", "own", "--out", str(tmp_path / "own"), "--checkpoint", "newest"]
    export_optimizer.main(arguments)
    assert read_card(tmp_path / "own").sha256 in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"export_optimizer.py: .*own exists already"):
        export_optimizer.main(arguments)
    export_optimizer.main([*arguments, "--overwrite", "--summary", "second"])
    assert read_card(tmp_path / "own").summary == "second"
    with pytest.raises(SystemExit, match="is not the directory of a run"):
        export_optimizer.main(["--run-dir", str(tmp_path), "--name", "own", "--out", str(tmp_path / "new")])


OWN = """
import dataclasses
from lopt.networks.update import DeepSetsConfig

@dataclasses.dataclass(frozen=True)
class OwnNetwork(DeepSetsConfig):
    pass
"""


def test_what_loading_would_refuse_is_not_exported(tmp_path):
    (tmp_path / "own_network_code.py").write_text(OWN)
    network = import_place("own_network_code:OwnNetwork", tmp_path)
    experiment = MetaTrainConfig(task=MLPConfig(), optimizer=LearnedMomentumConfig(network=network()), estimator=PESConfig())
    (tmp_path / "run").mkdir()
    config.save(experiment, tmp_path / "run" / config.CONFIG_FILE)
    with pytest.raises(
        CardError, match=r"is made of 'own_network_code:OwnNetwork', which is none of lopt's.* would be of no use"
    ):
        export_run(tmp_path / "run", tmp_path / "out", name="own")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda theta: {**theta, "alpha": jnp.float32(jnp.nan)}, "leaf 'alpha' of theta holds values that are not finite"),
        (lambda theta: {**theta, "surplus": jnp.float32(1)}, "theta has a leaf 'surplus', which its config does not know"),
    ],
)
def test_a_theta_that_loading_would_refuse_is_not_exported(tmp_path, edit, message):
    config.claim_run_dir(tmp_path / "run", EXPERIMENT)
    theta = initial_theta(0, EXPERIMENT.optimizer.make(EXPERIMENT.task.make().spec))
    checkpoint.save(tmp_path / "run", 2, {"theta": edit(theta)})
    with MetricsWriter(tmp_path / "run") as metrics:
        metrics.write({"outer_step": 2})
    with pytest.raises(CardError, match=message):
        export_run(tmp_path / "run", tmp_path / "out", name="own")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_card_does_not_tell_where_ones_code_lies(tmp_path):
    task = ImportedTaskConfig("my_task:make", str(tmp_path), (("width", 3),))
    experiment = MetaTrainConfig(task=task, optimizer=LearnedMomentumConfig(), estimator=PESConfig())
    recipe = public_recipe(config.to_dict(experiment))
    assert str(tmp_path) not in json.dumps(recipe)
    assert recipe["task"] == {"class": "imported_task", "function": "my_task:make", "arguments": [["width", 3]]}
    assert config.from_dict(recipe, trust=True) == dataclasses.replace(experiment, task=dataclasses.replace(task, directory=""))
