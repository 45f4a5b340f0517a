"""A task of any loss: what is inferred is true, what cannot be a task is named, and the examples of every library meta-train."""

import dataclasses
import pathlib
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lopt
from lopt.config import from_dict, load_file, to_dict
from lopt.estimators.pes import PESConfig
from lopt.evaluation.baselines import find_baseline
from lopt.evaluation.rollout import metrics_fn, seed_keys, train_fn
from lopt.networks.update import UNFConfig
from lopt.optimizers.momentum import LearnedMomentumConfig, LearnedSGDMConfig
from lopt.symmetry import SpecError, WeightSpec
from lopt.symmetry.compare import same_group
from lopt.task.base import DataStream, Task
from lopt.task.named import ImportedTaskConfig
from lopt.task.splits import split_arrays
from lopt.training import checkpoint, metrics
from lopt.training.trainer import initial_theta, meta_train
from lopt.unroll import UnrollConfig

EXAMPLES = ("plain_jax", "flax_linen", "flax_nnx", "equinox_mlp", "batchnorm_dropout")
ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = load_file(ROOT / "examples" / "config.py")
KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
DATA = {"x": X, "y": X.sum(axis=1)}


def init(key):
    return {"w0": jax.random.normal(key, (3, 4)), "w1": jnp.ones(4)}


def loss(params, key, batch):
    return jnp.mean(jnp.square(jnp.tanh(batch["x"] @ params["w0"]) @ params["w1"] - batch["y"]))


def make(init=init, loss=loss, data=DATA, **options):
    return lopt.task_from_loss(init, loss, data, **{"batch_size": 8, **options})


# --- What it makes


def test_the_spec_the_splits_and_the_initial_loss_are_found():
    task = make(name="own", split_seed=3)
    assert str(task.spec).split() == ["w0", "w0.in!", "w0", "w1", "w0"]
    assert (task.name, task.normalizer(3.0)) == ("own", 3.0)
    np.testing.assert_array_equal(task.datasets.test.arrays["x"], split_arrays(DATA, 8, seed=3).test.arrays["x"])
    assert task.datasets.train.batch(KEY)["x"].shape == (8, 3)
    losses = [loss(init(jax.random.key(seed)), KEY, DATA) for seed in range(40)]
    assert np.mean(losses) / 3 < task.initial_loss < np.mean(losses) * 3  # 8 initialisations, a batch of 8 each
    assert task.metrics(init(KEY), KEY, DATA) == {}


def test_what_is_given_is_taken():
    spec = WeightSpec.parse({"w0": "in! units!", "w1": "units!"})
    datasets = split_arrays(DATA, 5)
    metrics = lambda params, key, batch: {"one": jnp.float32(1)}  # noqa: E731
    task = make(data=datasets, spec=spec, initial_loss=7.0, metrics=metrics, normalizer=jnp.log)
    assert (task.spec, task.initial_loss, task.datasets) == (spec, 7.0, datasets)
    assert task.metrics(init(KEY), KEY, DATA) == {"one": 1.0}
    assert task.normalizer is jnp.log


def test_data_may_be_a_stream():
    class Stream(DataStream):
        def at(self, step):
            return split_arrays({name: array + step for name, array in DATA.items()}, 4)

    stream = Stream()
    assert make(data=stream).datasets is stream


def test_a_model_with_a_state():
    def loss_with_state(params, state, key, batch):
        return loss(params, key, batch), {"seen": state["seen"] + 1}

    task = make(lambda key: (init(key), {"seen": jnp.int32(0)}), loss_with_state, has_state=True)
    assert task.spec == make().spec
    assert task.loss_with_state(*task.init_with_state(KEY), KEY, DATA)[1] == {"seen": 1}


# --- What cannot be a task


def test_a_leaf_that_is_not_an_array_is_named():
    def model(key):
        return eqx.nn.MLP(3, "scalar", 4, 1, activation=jax.nn.gelu, key=key)

    with pytest.raises(ValueError, match=r"task 'task' returns at 'activation' .*gelu.*equinox.partition"):
        make(model, lambda params, key, batch: jnp.mean(jax.vmap(params)(batch["x"])))


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (
            lambda key: jnp.arange(3),
            "returns at 'norm/count' an array of int32, but weights are real floats: what is not trained",
        ),
        (lambda key: jnp.ones(3, bool), "'norm/count' an array of bool"),
        (lambda key: key, "'norm/count' an array of key<fry>"),
        (
            lambda key: jnp.ones(3, jnp.complex64),
            "'norm/count' an array of complex64.*real and its imaginary part are two leaves",
        ),
        (lambda key: 0.5, "'norm/count' 0.5, which is not an array"),
    ],
    ids=["integer", "boolean", "key", "complex", "number"],
)
def test_a_leaf_that_has_no_gradient_is_named(leaf, message):
    with pytest.raises(ValueError, match=message):
        make(lambda key: init(key) | {"norm": {"count": leaf(key)}})


@pytest.mark.parametrize(
    "value", [lambda: jnp.ones(3), lambda: jnp.int32(1), lambda: jnp.complex64(1)], ids=["vector", "integer", "complex"]
)
def test_a_loss_that_is_not_a_number_is_shown(value):
    with pytest.raises(ValueError, match="a scalar of a real float type, but it is ShapeDtypeStruct"):
        make(loss=lambda params, key, batch: value())


def test_an_initial_loss_that_says_nothing_about_the_scale_is_asked_for():
    with pytest.raises(
        ValueError, match=r"is -.* on average over 8 initialisations.*give initial_loss, the loss of a constant prediction$"
    ):
        make(loss=lambda params, key, batch: -loss(params, key, batch))
    assert make(loss=lambda params, key, batch: -loss(params, key, batch), initial_loss=1.0).initial_loss == 1.0
    with pytest.raises(ValueError, match=r"is nan on average .*see that init gives weights at which the loss is finite"):
        make(loss=lambda params, key, batch: loss(params, key, batch) * jnp.nan, spec=make().spec)


def test_the_example_in_the_documentation_runs():
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "interop.md").read_text(), re.DOTALL)
    names: dict = {}
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # as in anybody's script
        exec(block, names)
    assert str(names["task"].spec).split() == ["head", "hidden", "hidden", "hidden.in!", "hidden"]


def test_a_spec_that_does_not_describe_the_params_is_refused():
    with pytest.raises(SpecError, match="w1"):
        make(spec=WeightSpec.parse({"w0": "in! units"}))


def test_a_spec_that_is_not_true_of_the_loss_is_refused():
    make(spec=WeightSpec.parse({"w0": "in! units", "w1": "units"}))
    with pytest.raises(SpecError, match=r"task 'task' .* permutations of 'inputs' \(in w0\): fix them with `!`"):
        make(spec=WeightSpec.parse({"w0": "inputs units", "w1": "units"}))
    with pytest.raises(SpecError, match=r"permutations of 'a' \(in w0\); 'b' \(in w1\)"):
        make(spec=WeightSpec.parse({"w0": "in! a", "w1": "b"}))


def test_under_dropout_a_spec_is_checked_in_the_mean():
    def dropped(params, key, batch):
        kept = jax.random.bernoulli(key, 0.5, (4,)).astype(jnp.float32)
        return jnp.mean(jnp.square(jnp.tanh(batch["x"] @ params["w0"]) * kept[None] @ params["w1"] - batch["y"]))

    def uneven(key):
        return {"w0": init(key)["w0"], "w1": jnp.array([3.0, -3.0, 1.0, -1.0])}

    make(init=uneven, loss=dropped, spec=WeightSpec.parse({"w0": "in! units", "w1": "units"}))
    with pytest.raises(SpecError, match="permutations of 'a'"):
        make(init=uneven, loss=dropped, spec=WeightSpec.parse({"w0": "in! a", "w1": "b!"}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": [X, X[:, 0]]}, r"datasets of task 'task' are of type list; give arrays by name"),
        ({"data": {"x": X, "y": np.array(["a"] * 60)}}, r"array 'y' of examples is of dtype <U1"),
        (
            {"init": lambda key: init(key) | {"steps": jnp.arange(3)}},
            r"at 'steps' an array of int32, but weights are real floats",
        ),
        (
            {"metrics": lambda params, key, batch: {"error": batch["y"]}},
            r"metric 'error' of task 'task' is to be a scalar, .*\(8,\)",
        ),
        ({"metrics": lambda params, key, batch: batch["y"]}, r"metrics of task 'task' are to be a dict"),
    ],
)
def test_what_cannot_be_a_task_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


# --- The function by its name


def test_a_function_of_a_module_makes_the_task(tmp_path, monkeypatch):
    (tmp_path / "own_tasks.py").write_text(
        "from tasks.mlp import MLPConfig\ndef make_task():\n    return MLPConfig(hidden=(3,)).make()\ndef number():\n    return 3\n"
    )
    (tmp_path / "own_broken.py").write_text("import module_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = ImportedTaskConfig("own_tasks:make_task")
    assert from_dict(to_dict(config), trust=True) == config
    task = config.make()
    assert isinstance(task, Task)
    assert task.name == "digits8_mlp_3"
    for function, message in (
        ("own_missing:make_task", "the task 'own_missing:make_task': No module named 'own_missing', .* PYTHONPATH"),
        ("own_tasks:missing", "own_tasks.py.* has no 'missing'; it defines: make_task, number"),
        ("own_tasks:number", "must return a lopt.Task or lopt.TaskFamily, but returned 3"),
    ):
        with pytest.raises(ValueError, match=message):
            ImportedTaskConfig(function).make()
    with pytest.raises(ModuleNotFoundError, match="module_that_is_not_there"):
        ImportedTaskConfig("own_broken:make_task").make()


@pytest.mark.parametrize("function", ["own_tasks", "own_tasks:", ":make_task", "own_tasks:make task"])
def test_a_function_without_its_module_is_refused(function):
    with pytest.raises(ValueError, match="must read module:function"):
        ImportedTaskConfig(function)


# --- The examples


SPECS = {
    "plain_jax": {
        "conv/kernel": "a! b! 1 units",
        "conv/bias": "units",
        "head/kernel": "units classes!",
        "head/bias": "classes!",
    },
    "flax_nnx": {"hidden/kernel": "a! units", "hidden/bias": "units", "head/kernel": "units classes!", "head/bias": "classes!"},
    "flax_linen": {
        "Dense_0/kernel": "a! width",
        "Dense_0/bias": "width",
        "LayerNorm_0/scale": "width",
        "LayerNorm_0/bias": "width",
        "Dense_1/kernel": "width width",
        "Dense_1/bias": "width",
        "Dense_2/kernel": "width classes!",
        "Dense_2/bias": "classes!",
    },
    "equinox_mlp": {
        "layers/0/weight": "u0 a!",
        "layers/0/bias": "u0",
        "layers/1/weight": "u1 u0",
        "layers/1/bias": "u1",
        "layers/2/weight": "classes! u1",
        "layers/2/bias": "classes!",
    },
    "batchnorm_dropout": {
        "hidden/kernel": "a! units",
        "norm/scale": "units",
        "norm/bias": "units",
        "head/kernel": "units classes!",
        "head/bias": "classes!",
    },
}


@pytest.fixture(scope="module", params=EXAMPLES)
def example(request):
    return request.param, ImportedTaskConfig(f"examples.{request.param}:make_task").make()


def test_the_inferred_spec_of_an_example(example):
    name, task = example
    tree = {}
    for path, axes in SPECS[name].items():
        *outer, leaf = path.split("/")
        inner = tree
        for part in outer:
            inner = inner.setdefault(part, {})
        inner[leaf] = axes
    inferred, expected = (WeightSpec(tuple(sorted(spec.leaves))) for spec in (task.spec, WeightSpec.parse(tree)))
    assert same_group(inferred, expected), f"inferred:\n{task.spec}"


def test_an_example_has_finite_gradients_and_the_loss_of_a_guess(example):
    _, task = example
    batch = task.datasets.train.batch(KEY)
    grads = jax.jit(jax.grad(task.loss))(task.init(KEY), KEY, batch)
    assert all(np.isfinite(leaf).all() and np.any(leaf) for leaf in jax.tree.leaves(grads))
    assert 0.8 * np.log(10) < task.initial_loss < 2 * np.log(10)


def test_batch_normalisation_and_dropout():
    """Statistics follow the batches, the key drops units, the metrics have neither noise nor the batch's statistics."""
    task = ImportedTaskConfig("examples.batchnorm_dropout:make_task").make()
    params, state = task.init_with_state(KEY)
    batch = task.datasets.train.batch(KEY)
    run = jax.jit(task.loss_with_state)
    value, after = run(params, state, KEY, batch)
    hidden = np.asarray(batch["image"], np.float32) / 16 @ np.asarray(params["hidden"]["kernel"])
    np.testing.assert_allclose(after["norm"]["mean"], 0.1 * hidden.mean(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(after["norm"]["var"], 0.9 + 0.1 * hidden.var(axis=0), rtol=1e-4)
    assert value == run(params, state, KEY, batch)[0] == run(params, after, KEY, batch)[0]
    assert value != run(params, state, jax.random.key(1), batch)[0]

    read = jax.jit(task.metrics_with_state)
    at_rest = read(params, after, KEY, batch)
    assert at_rest == read(params, after, jax.random.key(1), batch)
    assert at_rest["loss"] != read(params, state, KEY, batch)["loss"]
    normal = (hidden - np.asarray(after["norm"]["mean"])) / np.sqrt(np.asarray(after["norm"]["var"]) + 1e-5)
    logits = np.maximum(normal, 0) @ np.asarray(params["head"]["kernel"])
    np.testing.assert_allclose(at_rest["accuracy"], np.mean(logits.argmax(axis=1) == np.asarray(batch["label"])), rtol=1e-6)

    element = task.spec.sample(KEY, params)
    moved = task.spec.permute(params, element)
    (order,) = element.values()
    moved_after = jax.tree.map(lambda leaf: leaf[order], after)
    np.testing.assert_allclose(read(moved, moved_after, KEY, batch)["loss"], at_rest["loss"], rtol=1e-5)
    assert abs(float(read(moved, after, KEY, batch)["loss"] - at_rest["loss"])) > 1e-4


@pytest.mark.slow
@pytest.mark.compiles
def test_a_model_with_batch_normalisation_and_dropout_learns():
    task = ImportedTaskConfig("examples.batchnorm_dropout:make_task").make()
    keys = seed_keys(KEY, 2)
    trained, losses = train_fn(task, find_baseline("adam").opt_fn, 200)(jnp.float32(0.03), keys, task.datasets)
    assert np.all(np.mean(losses[:, -20:], axis=1) < 0.5)  # with a fifth of the units dropped; it starts at 2.3 and more
    tests = metrics_fn(task)(None, (trained, keys), task.datasets)
    assert np.all(tests["accuracy"] > 0.9)
    assert np.all(tests["loss"] < 0.3)


@pytest.mark.slow
@pytest.mark.compiles
def test_an_example_meta_trains(example, tmp_path):
    name, task = example
    experiment = dataclasses.replace(
        CONFIG,
        task=ImportedTaskConfig(f"examples.{name}:make_task"),
        # Its compilation is what takes long: for a pytree that is no dict, and for a model with a state.
        optimizer=LearnedMomentumConfig(network=UNFConfig((4,)))
        if name in ("equinox_mlp", "batchnorm_dropout")
        else LearnedSGDMConfig(),
        estimator=PESConfig(particles=2),
        unroll=UnrollConfig(horizon=10, truncation=5, meta_loss="mean"),
        outer_steps=2,
    )
    result = meta_train(experiment, tmp_path, progress=False)
    start = initial_theta(0, experiment.optimizer.make(task.spec, task.spec.sizes(task.param_shapes())))
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), result.theta, start)
    assert all(change > 0 for change in jax.tree.leaves(moved))
    assert all(np.isfinite(record["meta_loss"]) and record["diverged"] == 0 for record in metrics.read(tmp_path))
    assert checkpoint.steps(tmp_path) == [2]
