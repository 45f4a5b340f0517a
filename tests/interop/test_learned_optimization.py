"""Tasks of learned_optimization under our trainer and race, and our optimizers under its gradient estimators."""

import importlib.util
import itertools
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from lopt.estimators.pes import PESConfig
from lopt.evaluation.baselines import find_baseline
from lopt.evaluation.rollout import metrics_fn, seed_keys, train_fn
from lopt.interop.learned_optimization import as_lo_optimizer, from_lo_task, restore_jax_names
from lopt.networks.update import UNFConfig
from lopt.optimizers.momentum import LearnedMomentumConfig, LearnedSGDMConfig
from lopt.symmetry import WeightSpec
from lopt.symmetry.compare import same_group
from lopt.unroll import UnrollConfig, make_unroll

pytestmark = [
    pytest.mark.interop,
    pytest.mark.filterwarnings("ignore:PrefetchIterator is deprecated:DeprecationWarning"),  # flax's, used by the package
]
KEY = jax.random.key(0)
MODULES = {
    "datasets": "tasks.datasets.base",
    "gradient_learner": "outer_trainers.gradient_learner",
    "image_mlp": "tasks.fixed.image_mlp",
    "learned_optimizers": "learned_optimizers.base",
    "optimizers": "optimizers.base",
    "quadratics": "tasks.quadratics",
    "tasks": "tasks.base",
    "truncated_pes": "outer_trainers.truncated_pes",
    "truncation_schedule": "outer_trainers.truncation_schedule",
}


@pytest.fixture(scope="module")
def lo():
    """The modules of the package."""
    if importlib.util.find_spec("learned_optimization") is None:
        pytest.skip("learned_optimization is not installed here; `make test-interop` makes an environment with it")
    restore_jax_names()
    modules = {name: importlib.import_module(f"learned_optimization.{path}") for name, path in MODULES.items()}
    return types.SimpleNamespace(**modules)


@pytest.fixture
def defaults():
    """What its own code needs, and the tests' settings forbid."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def digits(lo):
    """Its MLP on images, fed with the digits of scikit-learn through iterators as its own loaders make them."""
    images, labels = load_digits(return_X_y=True)
    data = {"image": (images / 16).astype(np.float32).reshape(-1, 8, 8, 1), "label": labels.astype(np.int32)}

    def split(index):
        generator = np.random.default_rng(index)
        while True:
            rows = generator.integers(0, len(labels) - 400, 32) if index < 3 else np.arange(len(labels) - 32, len(labels))
            yield {name: array[rows] for name, array in data.items()}

    shapes = {"image": jax.ShapeDtypeStruct((32, 8, 8, 1), jnp.float32), "label": jax.ShapeDtypeStruct((32,), jnp.int32)}
    datasets = lo.datasets.Datasets(*map(split, range(4)), extra_info={"num_classes": 10}, abstract_batch=shapes)
    return lo.image_mlp._MLPImageTask(datasets, [16])


@pytest.fixture(scope="module")
def task(digits):
    return from_lo_task(digits, batches=8)


def test_its_mlp_is_one_of_our_tasks(task, digits):
    expected = WeightSpec.parse({"l0": {"b": "hidden", "w": "pixels! hidden"}, "l1": {"b": "classes!", "w": "hidden classes!"}})
    numbered = WeightSpec(tuple(zip(("l0/b", "l0/w", "l1/b", "l1/w"), (axes for _, axes in task.spec.leaves), strict=True)))
    assert same_group(numbered, expected), task.spec
    params, state = task.init_with_state(KEY)
    assert state is None
    batch = task.datasets.train.batch(KEY)
    assert batch["image"].shape == (32, 8, 8, 1)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        theirs = digits.loss(digits.init(jax.random.PRNGKey(0)), jax.random.PRNGKey(0), batch)
    np.testing.assert_allclose(task.loss(params, KEY, batch), theirs, rtol=1e-6)
    assert task.normalizer(jnp.float32(2.0)) == digits.normalizer(jnp.float32(2.0))
    element = task.spec.sample(KEY, params)
    np.testing.assert_allclose(task.loss(task.spec.permute(params, element), KEY, batch), theirs, rtol=1e-5)


def test_its_mlp_learns_in_our_race(task):
    keys = seed_keys(KEY, 2)
    trained, losses = train_fn(task, find_baseline("adam").opt_fn, 60)(jnp.float32(0.03), keys, task.datasets)
    assert np.all(losses[:, 0] > 2)
    assert np.all(np.mean(losses[:, -10:], axis=1) < 0.7)
    assert np.all(metrics_fn(task)(None, (trained, keys), task.datasets)["loss"] < 1.2)


def test_we_meta_train_on_its_mlp(task):
    optimizer = LearnedSGDMConfig().make(task.spec)
    unroll = UnrollConfig(horizon=4, truncation=2, meta_loss="mean")
    estimator = PESConfig(particles=2).make(make_unroll(unroll, task, optimizer))
    theta, outer = optimizer.init(KEY), optax.sgd(1e-3)
    before, outer_state, state = theta, outer.init(theta), jax.jit(estimator.init)(KEY, theta)
    step = jax.jit(estimator.step)
    for index in range(2):
        gradient, state, info = step(jax.random.key(index), theta, task.datasets.at(index), state)
        assert np.isfinite(info["meta_loss"])
        assert int(info["diverged"]) == 0
        updates, outer_state = outer.update(gradient, outer_state, theta)
        theta = optax.apply_updates(theta, updates)
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), theta, before)
    assert all(change > 0 for change in jax.tree.leaves(moved))


def test_a_task_without_data(lo):
    task = from_lo_task(lo.quadratics.QuadraticTask(dim=5))
    assert task.name == "QuadraticTask"
    assert str(task.spec).strip().rstrip("!") == str(task.spec).strip()  # a sum of squares does not mind the order
    batch = task.datasets.train.batch(KEY)
    np.testing.assert_allclose(task.loss(jnp.arange(5.0), KEY, batch), 30.0)
    _, losses = train_fn(task, find_baseline("sgdm").opt_fn, 30)(jnp.float32(0.05), seed_keys(KEY, 2), task.datasets)
    assert np.all(losses[:, -1] < 0.1 * losses[:, 0])


def test_a_task_with_a_state_and_metrics(lo):
    class Counting(lo.tasks.Task):
        datasets = None

        def init_with_state(self, key):
            return {"w": jax.random.normal(key, (3,))}, {"count": jnp.zeros((), jnp.int32)}

        def loss_with_state(self, params, state, key, data):
            return jnp.sum(jnp.square(params["w"])) + jax.random.uniform(key), {"count": state["count"] + 1}

    task = from_lo_task(Counting())
    trained, _ = train_fn(task, find_baseline("sgdm").opt_fn, 5)(jnp.float32(0.05), seed_keys(KEY, 2), task.datasets)
    np.testing.assert_array_equal(trained.model["count"], [5, 5])

    class Measuring(lo.tasks.Task):
        def init(self, key):
            return jax.random.normal(key, (3,))

        def loss(self, params, key, data):
            return jnp.sum(jnp.square(params))

        def loss_and_aux(self, params, key, data):
            return self.loss(params, key, data), {"norm": jnp.sqrt(self.loss(params, key, data)), "weights": params}

        def normalizer(self, loss):
            return loss / 7

    task = from_lo_task(Measuring(), initial_loss=2.0)
    assert task.metrics(jnp.asarray([3.0, 4.0, 0.0]), KEY, {}) == {"norm": 5.0}
    assert (task.initial_loss, task.normalizer(14.0)) == (2.0, 2.0)


def test_one_of_our_optimizers_is_one_of_theirs(lo, task, digits, defaults):
    """Under their interface it takes the steps it takes under ours."""
    optimizer = LearnedMomentumConfig(network=UNFConfig((4,))).make(task.spec)
    theirs = as_lo_optimizer(optimizer, "unf")
    assert isinstance(theirs, lo.learned_optimizers.LearnedOptimizer)
    theta = theirs.init(jax.random.PRNGKey(1))
    jax.tree.map(np.testing.assert_array_equal, theta, optimizer.init(jax.random.key(1)))
    jax.tree.map(np.testing.assert_array_equal, theta, theirs.init(jax.random.key(1)))
    opt = theirs.opt_fn(theta, is_training=True)
    assert isinstance(opt, lo.optimizers.Optimizer)
    assert opt.name == "unf"

    params = digits.init(jax.random.PRNGKey(0))
    state, tx = opt.init(params, model_state="kept", num_steps=10, key=jax.random.PRNGKey(0)), optimizer.opt_fn(theta)
    assert opt.get_state(state) == "kept"
    reference = tx.init(params)
    update, transform = jax.jit(lambda state, grad, loss: opt.update(state, grad, loss)), jax.jit(tx.update)
    state = state._replace(state=None)
    for _, batch in zip(range(3), digits.datasets.train, strict=False):
        loss, grad = jax.value_and_grad(digits.loss)(params, jax.random.PRNGKey(0), batch)
        updates, reference = transform(grad, reference, params)
        params = optax.apply_updates(params, updates)
        state = update(state, grad, loss)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), opt.get_params(state), params)
    assert int(state.iteration) == 3
    assert opt.get_params(opt.set_params(state, "new")) == "new"


def test_our_optimizer_meta_trains_in_its_trainer(lo, task, digits, defaults):
    """Its PES over truncated unrolls, its gradient learner, its Adam on our theta."""
    theirs = as_lo_optimizer(LearnedMomentumConfig(network=UNFConfig((4,))).make(task.spec))
    estimator = lo.truncated_pes.TruncatedPES(
        lo.tasks.single_task_to_family(digits),
        theirs,
        lo.truncation_schedule.ConstantTruncationSchedule(10),
        num_tasks=2,
        trunc_length=2,
        steps_per_jit=2,
    )
    learner = lo.gradient_learner.SingleMachineGradientLearner(theirs, [estimator], lo.optimizers.Adam(1e-3))
    state = learner.init(jax.random.PRNGKey(0))
    before = learner.get_lopt_params(state)
    for index in range(2):
        state, loss, _ = learner.update(state, jax.random.PRNGKey(index))
        assert 1 < float(loss) < 4
    moved = jax.tree.map(
        lambda a, b: float(np.max(np.abs(np.asarray(a) - np.asarray(b)))), learner.get_lopt_params(state), before
    )
    assert all(change > 0 for change in jax.tree.leaves(moved))


def test_batches_are_read_from_each_split(lo, digits):
    counted = [0] * 4

    def split(index):
        for number in itertools.count():
            counted[index] += 1
            yield {"x": np.full((2, 3), 10 * index + number, np.float32)}

    class Means(lo.tasks.Task):
        datasets = lo.datasets.Datasets(*map(split, range(4)))

        def init(self, key):
            return jnp.ones(3)

        def loss(self, params, key, data):
            return jnp.mean(jnp.square(params - data["x"]))

    task = from_lo_task(Means(), batches=3)
    assert counted == [3] * 4
    for index, name in enumerate(("train", "inner_valid", "outer_valid", "test")):
        batches = getattr(task.datasets, name).batches["x"]
        np.testing.assert_array_equal(batches[:, 0, 0], 10 * index + np.arange(3))


def test_without_the_package_the_error_says_how_to_get_it():
    program = (
        "import sys; sys.modules['learned_optimization'] = None\n"
        "from lopt.interop.learned_optimization import as_lo_optimizer\n"
        "from lopt.optimizers.momentum import LearnedSGDMConfig\n"
        "as_lo_optimizer(LearnedSGDMConfig().make(None))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    for part in (
        "pip install -e '.[interop]' in the clone",
        "'lopt[interop] @ git+",
        "pip install --no-deps learned-optimization==0.0.1",
    ):
        assert part in result.stderr.replace("\n", " ")
