"""Zoos that are made: what is drawn, what is kept, and that nothing is made twice."""

import csv
import dataclasses
import functools
import json
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import optax
import pytest

from lopt.config import ConfigError
from lopt.runtime.locks import BusyError, only_process
from lopt.symmetry.spec import WeightSpec, named_leaves
from lopt.weight_space.make import ZooConfig, make_zoo, plan_shards, proven_spec, train_models
from lopt.weight_space.read import read_zoo
from lopt.weight_space.store import ZooError, read_manifest
from tasks.addition import AdditionConfig
from tasks.mlp import MLPConfig

TASK = AdditionConfig(digits=1, hidden=3, examples=60)
TINY = ZooConfig(task=TASK, models=5, steps=4, batch_sizes=(4,), shard=2, seed=3)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    path = tmp_path_factory.mktemp("zoo")
    assert make_zoo(TINY, path) == TINY.models
    return path


def lines(zoo):
    with (zoo / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_model_is_drawn_once_and_trained_with_its_own_batch_size():
    plans = plan_shards(dataclasses.replace(TINY, models=200, shard=9, learning_rates=(1e-3, 1e-1), batch_sizes=(4, 8)))
    assert sorted(model for plan in plans for model in plan.models) == list(range(200))
    assert max(len(plan.models) for plan in plans) == 9
    assert [plan.number for plan in plans] == list(range(len(plans)))
    rates = np.array([rate for plan in plans for rate in plan.learning_rates])
    assert rates.min() >= 1e-3
    assert rates.max() <= 1e-1
    assert abs(np.log10(rates).mean() + 2) < 0.15, "log-uniform"
    of_size = {size: sum(len(plan.models) for plan in plans if plan.batch_size == size) for size in (4, 8)}
    assert min(of_size.values()) > 70


def test_what_a_zoo_holds(zoo):
    table = lines(zoo)
    assert sorted(int(line["model"]) for line in table) == list(range(5))
    assert {float(line["batch_size"]) for line in table} == {4.0}
    content = read_zoo(zoo, "success")
    shapes = {path: leaf.shape for path, leaf in named_leaves(TASK.make().param_shapes())}
    assert {path: array.shape[1:] for path, array in content.weights.items()} == shapes
    assert content.spec == WeightSpec.parse({path: TASK.make().spec.notation(path) for path in content.spec.paths})
    np.testing.assert_allclose(content.labels, [float(line["success"]) for line in table], rtol=1e-6)


def test_a_model_is_what_training_it_alone_gives(zoo):
    """With Adam of optax's, from the model's own key."""
    line = next(line for line in lines(zoo) if line["model"] == "3")
    task = dataclasses.replace(TASK, batch_size=int(float(line["batch_size"]))).make()
    init_key, steps_key, _ = jax.random.split(jax.random.fold_in(jax.random.key(TINY.seed), 3), 3)
    params, adam = task.init(init_key), optax.adam(float(line["learning_rate"]))
    state = adam.init(params)
    gradient = jax.jit(lambda params, loss_key, key: jax.grad(task.loss)(params, loss_key, task.datasets.train.batch(key)))
    for step in range(TINY.steps):
        batch_key, loss_key = jax.random.split(jax.random.fold_in(steps_key, step))
        grads = gradient(params, loss_key, batch_key)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = adam.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    content = read_zoo(zoo, "success")
    kept = {path: array[content.names.index(f"{line['file']}[{line['index']}]")] for path, array in content.weights.items()}
    for path, leaf in named_leaves(params):
        np.testing.assert_allclose(kept[path], leaf, rtol=2e-4, atol=1e-5, err_msg=path)


def test_a_zoo_that_is_whole_is_left_as_it_is(zoo):
    before = {path: path.read_bytes() for path in zoo.rglob("*") if path.is_file()}
    make_zoo(TINY, zoo, lambda message, weight: pytest.fail(f"made again: {message}"))
    assert before == {path: path.read_bytes() for path in zoo.rglob("*") if path.is_file()}


def test_two_processes_do_not_make_one_zoo(zoo):
    with only_process(zoo / ".lock", "it"), pytest.raises(BusyError, match=f"{zoo.name} is in use by process"):
        make_zoo(TINY, zoo)


def test_what_was_cut_off_is_made_again_to_the_same_bytes(zoo, tmp_path):
    """A shard without its entry, as a kill between the two leaves it."""
    copy = tmp_path / "zoo"
    shutil.copytree(zoo, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["shards"] = manifest["shards"][:1]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    (copy / "models" / "00001.safetensors").write_bytes(b"half a sha")
    made = []
    assert make_zoo(TINY, copy, lambda message, weight: made.append(message)) == TINY.models
    assert len(made) == len(read_manifest(zoo)) - 1
    for path in zoo.rglob("*"):
        if path.is_file() and path.name != "manifest.json":
            assert path.read_bytes() == (copy / path.relative_to(zoo)).read_bytes(), path.name


@pytest.mark.slow
def test_a_kill_leaves_no_model_twice(tmp_path):
    command = [
        sys.executable,
        "scripts/make_rnn_zoo.py",
        "--out",
        str(tmp_path),
        "--models",
        "12",
        "--steps",
        "20",
        "--shard",
        "2",
    ]
    command += ["--task.hidden", "4", "--task.digits", "1", "--batch-sizes", "8"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    manifest, deadline = tmp_path / "manifest.json", time.monotonic() + 120
    while not manifest.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert manifest.exists()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert sorted(int(line["model"]) for line in lines(tmp_path)) == list(range(12))
    assert len(read_zoo(tmp_path, "success").labels) == 12
    assert (tmp_path / "success.png").read_bytes().startswith(b"\x89PNG")


def test_models_that_diverge_are_left_out(tmp_path):
    config = dataclasses.replace(TINY, task=MLPConfig(hidden=(4,)), learning_rates=(1e30, 1e38), batch_sizes=(8,), models=2)
    assert make_zoo(config, tmp_path) == 0
    assert lines(tmp_path) == []


def test_what_cannot_be_made(zoo, tmp_path):
    with pytest.raises(ConfigError, match="steps is 4 there, not 5"):
        make_zoo(dataclasses.replace(TINY, steps=5), zoo)
    with pytest.raises(ValueError, match="learning_rates"):
        dataclasses.replace(TINY, learning_rates=(1e-2, 1e-3))
    with pytest.raises(ValueError, match="batch_sizes"):
        dataclasses.replace(TINY, batch_sizes=())
    task = TASK.make()
    wrong = dataclasses.replace(task, spec=WeightSpec.parse({p: task.spec.notation(p).replace("!", "") for p in task.spec.paths}))
    with pytest.raises(ZooError, match="states another symmetry"):
        proven_spec(wrong)


def test_a_damaged_shard_is_named(zoo, tmp_path):
    copy = tmp_path / "zoo"
    shutil.copytree(zoo, copy)
    shard = copy / "models" / "00002.safetensors"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ZooError, match=r"00002.safetensors is not what was written"):
        make_zoo(TINY, copy)
    shard.unlink()
    with pytest.raises(ZooError, match=r"00002.safetensors is missing"):
        make_zoo(TINY, copy)


def test_the_loss_is_the_mean_of_the_last_tenth():
    task = dataclasses.replace(TASK, batch_size=8).make()
    keys, rates = jax.random.split(jax.random.key(0), 2), jax.numpy.full(2, 0.01)
    (_, long), (_, short) = (jax.jit(functools.partial(train_models, task, n))(keys, rates, task.datasets) for n in (40, 1))
    assert (np.asarray(long["loss"]) < np.asarray(short["loss"])).all()
