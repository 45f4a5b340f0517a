"""Predictors on zoos whose labels are known functions of the weights."""

import json
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.stats import kendalltau

from lopt.symmetry.spec import WeightSpec
from lopt.weight_space.predict import Method, PredictionConfig, scores, split, train_predictor
from lopt.weight_space.read import Zoo
from lopt.weight_space.report import (
    differences,
    is_papers_zoo,
    prediction_table,
    read_predictions,
    write_predictions,
    write_report,
)
from lopt.weight_space.store import ZooError
from scripts import predict_generalization

ROOT = Path(__file__).resolve().parents[2]

SPEC = WeightSpec.parse({"k0": "inputs! hidden", "k1": "hidden outputs!"})
SMALL = {"channels": (4, 4), "hidden": (16,), "statistics_hidden": (16,)}


def zoo_of(label, count=120, seed=0):
    draw = np.random.default_rng(seed)
    weights = {"k0": draw.standard_normal((count, 3, 5), np.float32), "k1": draw.standard_normal((count, 5, 2), np.float32)}
    labels = np.asarray(label(weights), np.float32)
    return Zoo(tuple(map(str, range(count))), weights, labels, SPEC)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def spread(weights):
    """What the variance of a tensor tells: every predictor can learn it."""
    return sigmoid(4 * (weights["k0"].std(axis=(1, 2)) - 1) * 3)


def coupling(weights):
    """How the two layers go together, whatever the order of hidden units: neither is told alone."""
    return sigmoid(2 * np.einsum("nih,nho->n", weights["k0"], weights["k1"]) / 5)


def test_parts_are_disjoint_whole_and_fixed():
    config = PredictionConfig()
    parts = split(103, config)
    assert sorted(np.concatenate(parts).tolist()) == list(range(103))
    assert [len(part) for part in parts] == [83, 10, 10]
    for one, other in zip(parts, split(103, config), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ZooError, match="4 models are too few"):
        split(4, config)


def test_scores_against_scipy_and_by_hand():
    rng = np.random.default_rng(0)
    predicted, labels = rng.uniform(size=50), np.round(rng.uniform(size=50), 1)  # with ties
    found = scores(predicted, labels)
    assert found.tau == pytest.approx(kendalltau(predicted, labels).statistic)
    assert found.r2 == pytest.approx(
        1 - np.var(predicted - labels) / np.var(labels) - (predicted - labels).mean() ** 2 / np.var(labels)
    )
    assert scores(labels, labels).r2 == 1.0
    assert scores(np.full(50, labels.mean()), labels).r2 == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("method", get_args(Method))
def test_every_method_learns_what_it_can(method):
    config = PredictionConfig(method=method, epochs=25, patience=25, learning_rate=3e-3, **SMALL)
    found = train_predictor(zoo_of(spread, count=200), config, seed=0)
    assert found.test.tau > 0.5
    assert len(found.predicted) == 20
    assert 1 <= found.epoch <= found.epochs == 25


@pytest.mark.slow
def test_only_what_sees_the_permutations_learns_a_coupling_of_layers():
    zoo = zoo_of(coupling, count=1500)
    tau = {
        method: train_predictor(zoo, PredictionConfig(method=method, epochs=30, patience=30, channels=(16, 16)), seed=0).test.tau
        for method in ("unf", "deep_sets", "statnn")
    }
    assert tau["unf"] > 0.4
    assert max(tau["deep_sets"], tau["statnn"]) < 0.3


def test_a_prediction_does_not_depend_on_the_order_of_hidden_units():
    zoo, config = zoo_of(spread), PredictionConfig(epochs=2, **SMALL)
    order = np.random.default_rng(1).permutation(5)
    moved = Zoo(zoo.names, {"k0": zoo.weights["k0"][:, :, order], "k1": zoo.weights["k1"][:, order]}, zoo.labels, SPEC)
    one, other = (train_predictor(z, config, seed=3) for z in (zoo, moved))
    np.testing.assert_allclose(one.predicted, other.predicted, rtol=1e-3)


def test_seeds_and_early_stopping():
    zoo, config = (
        zoo_of(lambda weights: np.random.default_rng(5).uniform(size=120)),
        PredictionConfig(epochs=40, patience=2, **SMALL),
    )
    seen = []
    one = train_predictor(zoo, config, 0, lambda epoch, loss: seen.append(loss))
    assert one.epochs == len(seen) < 40, "noise is not learned: the validation loss stops falling"
    assert one.epoch == int(np.argmin(seen)) + 1 == one.epochs - 2
    np.testing.assert_array_equal(one.predicted, train_predictor(zoo, config, 0).predicted)
    assert (one.predicted != train_predictor(zoo, config, 1).predicted).any()


def test_labels_outside_the_unit_interval_are_named():
    with pytest.raises(ZooError, match="the label of 0 is -1"):
        train_predictor(zoo_of(lambda weights: np.full(120, -1.0)), PredictionConfig(**SMALL), 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "mlp"},
        {"epochs": 0},
        {"train_models": 0},
        {"terms": -1.0},
        {"valid": 0.6, "test": 0.5},
        {"learning_rate": 0.0},
    ],
)
def test_bad_settings(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PredictionConfig(**wrong)


@pytest.mark.parametrize("method", ["unf", "shared_unf", "pooled_deep_sets"])
def test_layers_begin_as_deep_sets(method):
    """With their own terms taken away, what is left is what DeepSets is."""
    begun = PredictionConfig(method=method, **SMALL).make(SPEC)
    alone = PredictionConfig(method="deep_sets", **SMALL).make(SPEC)
    theta = begun.init(jax.random.key(0))
    for layer in theta["equivariant"].values():
        layer["terms"] = jax.tree.map(jnp.zeros_like, layer["terms"])
    plain = theta | {"equivariant": {name: layer["shared"] for name, layer in theta["equivariant"].items()}}
    x = {path: jax.random.normal(jax.random.key(1), (*(4 for _ in SPEC.factors(path)), 1)) for path in SPEC.paths}
    np.testing.assert_allclose(begun.apply(theta, x), alone.apply(plain, x), rtol=1e-5)
    published = PredictionConfig(method=method, terms=None, **SMALL).make(SPEC)
    assert "shared" not in published.init(jax.random.key(0))["equivariant"]["layer0"]


def test_fewer_models_to_train_on_leave_the_other_parts_alone():
    whole, part = (split(50, PredictionConfig(train_models=n)) for n in (None, 7))
    np.testing.assert_array_equal(part[0], whole[0][:7])
    for one, other in zip(part[1:], whole[1:], strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_kept_is_what_is_shown(tmp_path):
    zoo = zoo_of(spread)
    for method in ("statnn", "deep_sets"):
        config = PredictionConfig(method=method, epochs=1, **SMALL)
        found = [train_predictor(zoo, config, seed) for seed in (0, 1)]
        write_predictions(tmp_path, config, found, label="success", models=120, zoo="spread")
    predictions, of = read_predictions(tmp_path)
    assert of == {"name": "spread", "models": 120, "label": "success"}
    assert [one.test for one in predictions["deep_sets"]] == [one.test for one in found]
    taus = [one.test.tau for one in found]
    line = next(line for line in prediction_table(predictions, paper=True) if line[0] == "deep_sets")
    assert line[1] == f"{np.mean(taus):.4f} ± {abs(taus[0] - taus[1]) / 2:.4f}"
    assert line[-1] == ".8306 ± .0006"
    assert "paper" not in str(prediction_table(predictions))
    assert is_papers_zoo(ROOT / "examples" / "small_rnn_zoo", "success")
    assert not is_papers_zoo(ROOT / "examples" / "small_rnn_zoo", "learning_rate")
    assert not is_papers_zoo(tmp_path, "success")
    header, (_, none, below), (method, difference, itself) = differences(predictions)
    assert header == ["method", "tau above StatNN's", "tau above DeepSets'"]
    assert (method, itself, none) == ("deep_sets", "-", "-")
    assert float(below.split(" ± ")[0]) == -float(difference.split(" ± ")[0])
    gap, error = map(float, difference.split(" ± "))
    others = [one.test.tau for one in predictions["statnn"]]
    assert gap == pytest.approx(np.mean(taus) - np.mean(others), abs=1e-4)
    assert 0.02 < error < 0.5  # of twelve models
    paths = write_report(tmp_path)
    assert ".8839 ± .0007" not in paths[0].read_text()  # the paper's figures stand beside its zoo alone
    assert ".8839 ± .0007" in str(prediction_table(predictions, paper=True))
    assert difference in paths[0].read_text()
    assert differences({"statnn": predictions["statnn"]}) == differences({"unf": found}) == []
    assert paths[1].read_bytes().startswith(b"\x89PNG")

    content = json.loads((tmp_path / "statnn.json").read_text())
    (tmp_path / "statnn.json").write_text(json.dumps(content | {"zoo": of | {"models": 7}}))
    with pytest.raises(ZooError, match="is of another zoo"):
        read_predictions(tmp_path)


def test_cross_validation_tests_every_model_once(tmp_path):
    config = PredictionConfig(method="statnn", epochs=1, cross_validate=True, **SMALL)
    parts = [split(103, config, seed) for seed in range(10)]
    for train, valid, test in parts:
        assert sorted([*train, *valid, *test]) == list(range(103))
    assert len(set(np.concatenate([test for _, _, test in parts]).tolist())) == 100
    for one, other in zip(parts[0], split(103, PredictionConfig()), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ZooError, match="there is none for seed 10"):
        split(103, config, 10)

    zoo = zoo_of(spread)
    for method in ("statnn", "deep_sets"):
        config = PredictionConfig(method=method, epochs=1, cross_validate=True, **SMALL)
        found = [train_predictor(zoo, config, seed) for seed in range(3)]
        for seed, one in enumerate(found):
            np.testing.assert_array_equal(one.labels, zoo.labels[split(120, config, seed)[2]].astype(np.float64))
        write_predictions(tmp_path, config, found, label="success", models=120, zoo="spread")
    predictions, _ = read_predictions(tmp_path)
    gaps = [a.test.tau - b.test.tau for a, b in zip(predictions["deep_sets"], predictions["statnn"], strict=True)]
    said = f"{np.mean(gaps):+.4f} ± {np.std(gaps, ddof=1) / np.sqrt(3):.4f}"
    assert differences(predictions)[2] == ["deep_sets", said, "-"]
    text = write_report(tmp_path)[0].read_text()
    assert said in text
    assert "over test parts" in text
    assert differences({"statnn": predictions["statnn"], "deep_sets": predictions["deep_sets"][:1]})[2] == ["deep_sets", "-", "-"]


def test_the_script(tmp_path, capsys):
    zoo = zoo_of(spread, count=40)
    rows = ["file,index,success"]
    save_file(zoo.weights, tmp_path / "models.safetensors")
    rows += [f"models.safetensors,{index},{label}" for index, label in enumerate(zoo.labels)]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    spec = tmp_path / "axes.json"
    spec.write_text(json.dumps({"axes": {path: SPEC.notation(path) for path in SPEC.paths}}))
    arguments = [
        "--zoo",
        str(tmp_path),
        "--method",
        "statnn",
        "--seeds",
        "2",
        "--epochs",
        "1",
        "--spec",
        str(spec),
    ]
    with pytest.raises(SystemExit, match="--channels does nothing with statnn"):
        predict_generalization.main([*arguments, "--channels", "4"])
    predict_generalization.main(arguments)
    assert "statnn, seed 1" in (printed := capsys.readouterr().out)
    assert "Kendall tau" in printed
    assert {path.name for path in (tmp_path / "predictions").iterdir()} == {"statnn.json", "table.md", "scatter.png"}
    with pytest.raises(SystemExit, match=r"predict_generalization.py: .*no column 'loss'"):
        predict_generalization.main([*arguments, "--label", "loss"])

    # Interrupted after the first seed, it goes on to the same; other settings are not mixed with these.
    path = tmp_path / "predictions" / "statnn.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(whole | {"seeds": whole["seeds"][:1]}))
    predict_generalization.main(arguments)
    assert json.loads(path.read_text())["seeds"] == whole["seeds"]
    assert "statnn, seed 0 is there" in capsys.readouterr().out
    chosen = ["--method", "unf", "--seeds", "1", "--channels", "3", "--terms", "0.5", "--patience", "2", "--train-models", "12"]
    chosen += ["--cross-validate"]
    predict_generalization.main([*arguments, *chosen, "--out", str(tmp_path / "other")])
    config = json.loads((tmp_path / "other" / "unf.json").read_text())["config"]
    assert [config[name] for name in ("channels", "terms", "epochs", "patience", "train_models")] == [[3], 0.5, 1, 2, 12]
    assert config["cross_validate"]
    predict_generalization.main([*arguments, "--seeds", "1"])
    assert json.loads(path.read_text())["seeds"] == whole["seeds"]
    with pytest.raises(SystemExit, match=r"statnn.json holds predictions with epochs 1, now 2: .*--out"):
        predict_generalization.main([*arguments, "--epochs", "2"])
    (tmp_path / "labels.csv").write_text("\n".join([rows[0], *(f"models.safetensors,{i},0.5" for i in range(40))]))
    with pytest.raises(SystemExit, match=r"statnn.json, seed 0, has predictions on models with other labels than this zoo's"):
        predict_generalization.main(arguments)
    path.write_text("{}")
    with pytest.raises(SystemExit, match=r"statnn.json does not hold predictions"):
        predict_generalization.main(arguments)
