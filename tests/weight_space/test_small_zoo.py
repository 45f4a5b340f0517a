"""The zoo that ships is what its table says."""

import json
from pathlib import Path

import jax
import numpy as np

from lopt.config import from_dict
from lopt.symmetry.spec import named_leaves
from lopt.weight_space.make import ZooConfig, plan_shards
from lopt.weight_space.read import read_zoo
from tasks.addition import seq2seq_spec

ZOO = Path(__file__).resolve().parents[2] / "examples" / "small_rnn_zoo"


def test_labels_are_those_of_the_weights():
    zoo = read_zoo(ZOO, "success", None)
    assert len(zoo.labels) == 200
    assert zoo.spec == seq2seq_spec()
    config = from_dict(json.loads((ZOO / "config.json").read_text()))
    assert isinstance(config, ZooConfig)
    assert sum(len(plan.models) for plan in plan_shards(config)) == 200
    task = config.task.make()
    names = [path for path, _ in named_leaves(task.init(jax.random.key(0)))]
    for model in (0, 199):
        params = jax.tree.unflatten(
            jax.tree.structure(task.init(jax.random.key(0))), [zoo.weights[name][model] for name in names]
        )
        found = task.metrics(params, jax.random.key(0), task.datasets.test.all())
        np.testing.assert_allclose(found["success"], zoo.labels[model], atol=2e-3)


def test_it_is_small():
    assert sum(path.stat().st_size for path in ZOO.rglob("*") if path.is_file()) < 5e6
