"""Every experiment in configs/ loads, says what it is, and builds; those without a download make their task."""

import dataclasses
import json
import pathlib
import re

import jax
import numpy as np
import pytest

from lopt import config
from lopt.networks.update import UNFConfig
from lopt.training import checkpoint
from lopt.training.trainer import meta_train, starting_theta
from lopt.unroll import UnrollConfig

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "configs").glob("[!_]*.py"))
OFFLINE = {
    "smoke",
    "digits_autoencoder",
    "digits_cnn",
    "digits_mlp",
    "digits_resnet",
    "digits_vit",
    "python_docs_deep_transformer",
    "python_docs_gru",
    "python_docs_rnn",
    "python_docs_transformer",
    "terms_rnn",
    "terms_transformer",
}
PAPER = {
    "fashion_mlp": ("digits", {"hidden": (4,)}),
    "cifar_cnn": ("digits", {"channels": (3, 4), "image_size": 6}),
    "lm1b_rnn": ("python_docs", {"embedding": 3, "hidden": (4,), "length": 3}),
    "lm1b_transformer": ("python_docs", {"tokenizer": "bytes", "width": 4, "heads": 2, "head_width": 2, "mlp": 5, "length": 3}),
}

each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def load(name):
    return config.load_file(ROOT / "configs" / f"{name}.py")


@each_file
def test_a_config_loads_and_says_how_to_run_it(file):
    experiment = config.load_file(file)
    assert config.from_dict(json.loads(json.dumps(config.to_dict(experiment)))) == experiment
    text = file.read_text().split('"""')[1]
    assert re.match(r"[^\n]+\.\n\n", text), "the first line is the summary that --help shows"
    command = re.search(r"^Command:\s+python scripts/meta_train\.py --config (\S+) --run-dir \S+$", text, re.MULTILINE)
    assert command
    assert command[1] == f"configs/{file.name}"
    for label in ("Cost:", "Expect:"):
        assert re.search(rf"^{label} +\S", text, re.MULTILINE), label


@pytest.mark.parametrize("name", sorted(OFFLINE))
def test_what_needs_no_download_makes_its_task(name):
    experiment = load(name)
    task = experiment.task.make()
    task.spec.validate(task.param_shapes())
    optimizer = experiment.optimizer.make(task.spec, task.spec.sizes(task.param_shapes()))
    assert jax.tree.leaves(jax.eval_shape(optimizer.init, jax.random.key(0)))


@pytest.mark.parametrize("name", ["terms_rnn", "terms_transformer"])
@pytest.mark.parametrize("seed", [0, 1])
def test_terms_begin_at_zero_beside_the_deep_sets_of_the_report(name, seed, monkeypatch):
    monkeypatch.chdir(ROOT)
    experiment = dataclasses.replace(load(name), seed=seed)
    theta = starting_theta(experiment, experiment.optimizer.make(experiment.task.make().spec))["network"]["last"]
    there = checkpoint.chosen_theta(experiment.init_from.format(seed=seed))[0]["network"]["last"]
    jax.tree.map(np.testing.assert_array_equal, theta["shared"], dict(there))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(theta["terms"]))


def test_the_meta_parameters_are_as_many_as_the_docstrings_say():
    for name, count in (("cifar_cnn", 5_513), ("lm1b_rnn", 8_043), ("lm1b_transformer", 79_208), ("fashion_mlp", 3_783)):
        dataset, sizes = PAPER[name]
        experiment = load(name)
        task = dataclasses.replace(experiment.task, dataset=dataset, **sizes).make()
        optimizer = experiment.optimizer.make(task.spec)
        found = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(optimizer.init, jax.random.key(0))))
        assert found == count, name
        assert f"{count:,} " in (ROOT / "configs" / f"{name}.py").read_text()


def test_the_recipes_of_the_paper_have_its_values():
    for name in PAPER:
        experiment = load(name)
        unroll, estimator = experiment.unroll, experiment.estimator
        assert (unroll.truncation, unroll.meta_loss, estimator.particles, estimator.sigma) == (50, "final", 16, 0.01), name
        assert unroll.horizon == experiment.evaluation.steps == (5000 if name == "lm1b_transformer" else 2000)
        optimizer = experiment.optimizer
        assert (optimizer.alpha, optimizer.g0, optimizer.beta, optimizer.network) == (
            0.1,
            0.9,
            0.001,
            UNFConfig((32, 32, 32), terms=None),
        )
        assert (experiment.outer_steps, experiment.outer.clip_norm) == (50_000, 1.0)
    assert [load(name).task.batch_size for name in sorted(PAPER)] == [128, 128, 64, 8]


@pytest.mark.slow
@pytest.mark.compiles
@pytest.mark.parametrize(  # tests/test_trainer.py is about MLPs
    ("name", "less"), [("cifar_cnn", {"channels": (3,)}), ("lm1b_rnn", {}), ("lm1b_transformer", {"blocks": 1})], ids=str
)
def test_the_recipes_run_at_a_small_size(name, less, tmp_path):
    dataset, sizes = PAPER[name]
    experiment = load(name)
    small = dataclasses.replace(
        experiment,
        task=dataclasses.replace(experiment.task, dataset=dataset, batch_size=2, **{**sizes, **less}),
        optimizer=dataclasses.replace(experiment.optimizer, network=UNFConfig((4,))),
        estimator=dataclasses.replace(experiment.estimator, particles=2),
        unroll=UnrollConfig(horizon=4, truncation=2),
        outer_steps=2,
        save_every=2,
    )
    result = meta_train(small, tmp_path / "run", progress=False)
    assert (result.step, result.interrupted) == (2, False)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert all(np.isfinite(line["meta_loss"]) and line["gradient_norm"] > 0 for line in lines)
