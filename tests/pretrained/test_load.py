"""`lopt.load`: shipped optimizers work on networks they never saw, runs and folders load, and what does not fit is named."""

import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lopt
from lopt import config
from lopt.estimators.pes import PESConfig
from lopt.networks.update import NFNConfig, PooledDeepSetsConfig, UNFConfig
from lopt.optimizers.momentum import LearnedMomentumConfig, LearnedSGDMConfig
from lopt.pretrained.card import CardError
from lopt.pretrained.load import open_trained
from lopt.symmetry import SpecError, WeightSpec
from lopt.training import checkpoint
from lopt.training.trainer import MetaTrainConfig
from tasks.cnn import CNNConfig
from tasks.mlp import MLPConfig
from tasks.rnn import RNNConfig
from tasks.transformer import TransformerConfig
from tests.pretrained.older import older

TASK = MLPConfig(image_size=4, hidden=(6,))
# The same network as the task's, under other names and in another order.
OTHER = WeightSpec.parse({"a_head": "units y!", "b_head": "y!", "in": "x! units", "in_bias": "units"})
NAMES = {"a_head": ("dense1", "kernel"), "b_head": ("dense1", "bias"), "in": ("dense0", "kernel"), "in_bias": ("dense0", "bias")}


def make_run(path, optimizer, scale=1.0, best=None):
    """A run directory as a meta-training leaves it, theta being the first one times a number."""
    problem = TASK.make()
    params = problem.param_shapes()
    path.mkdir()
    config.save(MetaTrainConfig(task=TASK, optimizer=optimizer, estimator=PESConfig()), path / config.CONFIG_FILE)
    theta = jax.jit(optimizer.make(problem.spec, problem.spec.sizes(params)).init)(jax.random.key(0))
    theta = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.sin(7 * leaf + 1), theta)  # no bias is zero
    checkpoint.save(path, 2, {"theta": jax.tree.map(lambda leaf: scale * leaf, theta)})
    if best is not None:
        checkpoint.save(path / checkpoint.BEST_DIR, 1, {"theta": jax.tree.map(lambda leaf: best * leaf, theta)})
    return path


def some_steps(tx, params, count=3):
    state, grads = tx.init(params), jax.tree.map(lambda leaf: jnp.cos(3 * leaf).astype(leaf.dtype), params)
    total = params
    for _ in range(count):
        updates, state = jax.jit(tx.update)(grads, state, total)
        total = optax.apply_updates(total, updates)
    return total


def slow(*values, **options):
    return pytest.param(*values, marks=pytest.mark.slow, **options)


# --- What is shipped


def test_to_import_lopt_imports_no_jax():
    code = "import lopt, sys; assert not {'jax', 'numpy'} & sys.modules.keys(); print(lopt.available, lopt.load, lopt.push)"
    assert "function load" in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_what_is_available_is_listed():
    found = lopt.available()
    assert {"lopt-direction", "lopt-direction-unf", "paper-deep-sets", "paper-unf"} == found.keys()
    lines = repr(found).splitlines()
    assert len(lines) == len(found)
    assert all(card.summary in line and len(line) < 140 for card, line in zip(found.values(), lines, strict=True))


@pytest.mark.parametrize("name", sorted(lopt.available()))
def test_the_card_of_a_shipped_optimizer_is_filled_in(name):
    card = lopt.available()[name]
    assert card.name == name
    assert all([card.summary, card.good_for, card.not_for, card.tasks, card.data, card.versions, card.licence == "Apache-2.0"])
    assert card.specs.keys() == set(card.tasks)
    assert card.budget["inner_steps"] > 0
    assert card.budget["hours"] > 0
    for race in card.results:
        assert race["seeds"] >= 10
        assert {"final_training_loss", "speed_up", "diverged"} <= race["optimizers"]["this"].keys()
    assert card.seen.keys() == set(card.tasks)
    assert "seen on:" in str(card)
    assert card.results
    assert "/" not in "".join(name for race in card.results for name in race["optimizers"])


def mlp(widths, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), len(widths))
    layers = zip(keys, widths, widths[1:], strict=False)
    return {
        f"layer{i}": {"w": (jax.random.normal(k, (m, n)) * (2 / m) ** 0.5).astype(dtype), "b": jnp.zeros(n, dtype)}
        for i, (k, m, n) in enumerate(layers)
    }


def mlp_loss(params, x, y):
    *hidden, head = params.values()
    for layer in hidden:
        x = jax.nn.relu(x @ layer["w"] + layer["b"][None])
    logits = (x @ head["w"] + head["b"][None]).astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def digits(dtype=jnp.float32):
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return jnp.asarray(x / 16, dtype), jnp.asarray(y, jnp.int32)


def bytes_of_state(params):
    """Four averages, the momentum, NAdam's v of vectors, both covariances and their roots, three factored moments, and two counters."""
    matrices, vectors = ([leaf.shape for leaf in jax.tree.leaves(params) if leaf.ndim == n] for n in (2, 1))
    of_matrices = sum(20 * r * c + 8 * (r**2 + c**2) + 12 * (r + c) + 4 for r, c in matrices)
    return of_matrices + sum(24 * n + 12 * (n + 1) + 16 for (n,) in vectors) + 8


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("lopt-direction-unf", jnp.bfloat16),
        slow("lopt-direction-unf", jnp.float32),
        slow("lopt-direction", jnp.bfloat16),
        slow("lopt-direction", jnp.float32),
    ],
)
def test_a_network_ten_times_as_large_in_either_precision(name, dtype):
    """The largest network of the training has 6,570 weights."""
    params, (x, y) = mlp((64, 288, 160, 10), dtype), digits(dtype)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count > 65_700
    tx = lopt.load(name, spec=lopt.infer_spec(mlp_loss, params, x[:8], y[:8], check=False), num_steps=50)
    state = tx.init(params)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state)) == bytes_of_state(params)

    @jax.jit
    def step(params, state, x, y):
        loss, grads = jax.value_and_grad(mlp_loss)(params, x, y)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, updates, loss

    losses = []
    for t in range(50):
        params, state, updates, loss = step(params, state, x[32 * t : 32 * t + 32], y[32 * t : 32 * t + 32])
        assert all(u.dtype == dtype and bool(jnp.isfinite(u).all()) for u in jax.tree.leaves(updates))
        losses.append(float(loss))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-8:]) < 0.6 * np.mean(losses[:3])


@pytest.mark.parametrize(
    ("shape", "inputs"), [((784, 128), 784), ((128, 784), 784), ((3, 3, 64, 32), 576), ((32, 64, 3, 3), 576)], ids=str
)
def test_weights_far_larger_than_any_that_were_seen_are_told_of(shape, inputs):
    """Once a load, whichever axis is that of the inputs."""
    params = {"near": jnp.ones((400, 400)), "far": jnp.ones(shape), "b": jnp.ones(10_000)}
    tx = lopt.load(older("small-mixture-deep-sets"))
    message = re.escape(f"was seen to work on weights of at most 103 inputs, but 'far' {list(shape)} has up to {inputs}: ")
    with pytest.warns(UserWarning, match=message + r".*cosine_decay_schedule\(0.3, steps\)\)\), try 1, 0.3 and 0.1") as caught:
        state = tx.init(params)
    assert caught[0].filename == __file__
    jax.tree.map(np.testing.assert_array_equal, tx.init(params), state)  # said once
    tx = lopt.load(older("small-mixture-deep-sets"))
    tx.init({name: leaf for name, leaf in params.items() if name != "far"})
    tx.init({})


@pytest.mark.slow
@pytest.mark.compiles
@pytest.mark.filterwarnings("ignore:.*relations between these weights")  # of a Transformer a UNF knows the fewest
@pytest.mark.parametrize("name", ["lopt-direction-unf", "lopt-direction"])
@pytest.mark.parametrize(
    "task",
    [
        CNNConfig(dataset="digits", channels=(6, 6, 6), batch_size=32),
        RNNConfig(dataset="python_docs", hidden=(12, 12), embedding=8, length=6, batch_size=32),
        TransformerConfig(dataset="python_docs", blocks=2, width=16, heads=2, head_width=8, mlp=32, length=8, batch_size=32),
    ],
    ids=["cnn", "rnn", "transformer"],
)
def test_any_architecture(task, name):
    """None of these shapes was trained on, nor was any Transformer."""
    losses = train(task.make(), lambda problem: lopt.load(name, num_steps=80, spec=problem.spec))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-10:]) < 0.95 * np.mean(losses[:3])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["paper-unf", "paper-deep-sets"])
def test_the_ones_of_the_reproduction_on_their_mlp_of_another_width(name):
    task = MLPConfig(dataset="digits", hidden=(48,), batch_size=64).make()
    losses = train(task, lambda problem: lopt.load(name, spec=problem.spec))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:3])


def train(problem, load, steps=80):
    """Training losses of a loaded optimizer on a task."""
    params, tx = problem.init(jax.random.key(0)), load(problem)

    @jax.jit
    def run(params, state, key):
        def step(carry, key):
            params, state = carry
            loss, grads = jax.value_and_grad(problem.loss)(params, key, problem.datasets.at(0).train.batch(key))
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), loss

        return jax.lax.scan(step, (params, state), jax.random.split(key, steps))[1]

    return np.asarray(run(params, tx.init(params), jax.random.key(1)))


# --- What is loaded is what was trained


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(LearnedMomentumConfig(network=UNFConfig((4,))), id="unf"),
        slow(LearnedMomentumConfig(network=PooledDeepSetsConfig((4,)), momenta_dtype="bfloat16"), id="pooled"),
        slow(LearnedMomentumConfig(network=UNFConfig((4,), share="role", equivariant=(3,))), id="by role"),
        slow(LearnedMomentumConfig(network=UNFConfig((4,), fixed="folded")), id="folded"),
        slow(LearnedMomentumConfig(network=NFNConfig((4,))), id="nfn"),
    ],
)
def test_a_run_gives_its_optimizer_under_any_names(tmp_path, optimizer):
    problem = TASK.make()
    run, params = make_run(tmp_path / "run", optimizer), problem.init(jax.random.key(1))
    learned = optimizer.make(problem.spec, problem.spec.sizes(params))
    expected = some_steps(learned.opt_fn(checkpoint.load_theta(run)), params)
    others = {name: params[layer][leaf] for name, (layer, leaf) in NAMES.items()}
    found = some_steps(lopt.load(run, spec=OTHER), others)
    for name, (layer, leaf) in NAMES.items():
        np.testing.assert_allclose(found[name], expected[layer][leaf], rtol=1e-5, atol=1e-6)


def test_the_best_of_a_run_or_its_newest(tmp_path):
    run, params = make_run(tmp_path / "run", LearnedSGDMConfig(), best=0.5), {"w": jnp.ones(3)}
    found = [lopt.load(run, best=best) for best in (True, False)]
    steps = [tx.update(params, tx.init(params), params)[0]["w"] for tx in found]
    np.testing.assert_allclose(steps[0], 0.5 * steps[1], rtol=1e-6)  # alpha is half of what it is


# --- What does not fit


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(
        ValueError, match=r"no directory 'lopt-direction-unv'; did you mean 'lopt-direction-unf'\? The shipped.*paper-unf"
    ):
        lopt.load("lopt-direction-unv")
    with pytest.raises(ValueError, match="there is no optimizer and no directory 'nowhere/at/all'; The"):
        lopt.load("nowhere/at/all")


def test_a_unf_without_a_spec_says_what_to_write():
    with pytest.raises(ValueError, match="must know which axes") as caught:
        lopt.load("lopt-direction-unf")
    (line,) = [line.strip() for line in str(caught.value).splitlines() if "tx =" in line]
    params = {"w": jnp.ones((3, 4))}
    names = {"lopt": lopt, "loss": lambda params, x: (x @ params["w"]).sum()}
    exec(line, names | {"params": params, "batch": jnp.ones((2, 3)), "N": 10}, names)
    assert "no spec: lopt-direction, paper-deep-sets" in str(caught.value)
    assert isinstance(names["tx"], optax.GradientTransformationExtraArgs)


def test_a_spec_of_other_weights_is_refused_where_they_are_first_seen():
    tx = lopt.load("lopt-direction-unf", num_steps=10, spec=OTHER)
    good = {"a_head": jnp.ones((3, 2)), "b_head": jnp.ones(2), "in": jnp.ones((4, 3)), "in_bias": jnp.ones(3)}
    state = tx.init(good)
    with pytest.raises(SpecError, match="'in' of shape"):
        tx.init({**good, "in": jnp.ones((4, 5))})
    with pytest.raises(SpecError, match="no leaf for"):
        tx.init(
            {"in": jnp.ones((4, 3)), "new": jnp.ones(3)}
        )  # weights that are left out are frozen; others are none of the spec's
    with pytest.raises(ValueError, match="sees the weights"):
        tx.update(good, state)


def test_roles_that_were_never_trained_on_are_counted():
    attention = WeightSpec.parse(
        {"query": "embed (heads dim@heads)", "key": "embed (heads dim@heads)", "out": "(heads dim@heads) embed"}
    )
    with pytest.warns(UserWarning, match=r"'lopt-direction-unf' knows \d+ of the \d+ relations between these weights"):
        lopt.load("lopt-direction-unf", num_steps=10, spec=attention)


def test_a_theta_that_is_not_shared_serves_its_own_network_alone(tmp_path):
    run = make_run(tmp_path / "run", LearnedMomentumConfig(network=UNFConfig((4,))))
    deeper = WeightSpec.parse({"a": "x! h", "b": "h i", "c": "i y!"})
    with pytest.raises(
        CardError, match=r"run: its coefficients are not shared by role.*\n?.*dense0/bias +hidden0[^$]*but the spec is\na "
    ):
        lopt.load(run, spec=deeper)


@pytest.mark.slow
def test_sizes_that_theta_depends_on_are_checked_when_they_are_known(tmp_path):
    run = make_run(tmp_path / "run", LearnedMomentumConfig(network=UNFConfig((4,), fixed="folded")))
    tx = lopt.load(run, spec=OTHER)
    params = {"a_head": jnp.ones((3, 10)), "b_head": jnp.ones(10), "in": jnp.ones((16, 3)), "in_bias": jnp.ones(3)}
    assert some_steps(tx, params)["in"].shape == (16, 3)
    with pytest.raises(CardError, match=r"run: leaf 'network/last/.*' of theta is float32\["):
        tx.init({**params, "in": jnp.ones((9, 3))})
    with pytest.raises(ValueError, match="sees the weights"):
        tx.update(params, tx.init(params))


def test_a_run_without_a_checkpoint_or_a_config_is_named(tmp_path):
    run = make_run(tmp_path / "run", LearnedSGDMConfig())
    for file in (run / "checkpoints").iterdir():
        file.unlink()
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint in"):
        lopt.load(run)
    (run / "config.json").write_text(json.dumps({"task": {}}))
    with pytest.raises(config.ConfigError, match=r"config.json: the config of the optimizer cannot be read: 'optimizer'"):
        lopt.load(run)


# --- Rates, decay, and the number of steps


@pytest.fixture(scope="module")
def direction_run(tmp_path_factory):
    optimizer = lopt.LearnedOptimizerConfig(
        lopt.DirectionRule(learning_rate=0.02), lopt.Celo2Features(), lopt.DeepSetsConfig((4,))
    )
    return make_run(tmp_path_factory.mktemp("runs") / "direction", optimizer)


def test_a_direction_asks_for_the_rate_and_decays_as_optax_does(direction_run):
    with pytest.raises(ValueError, match=r"gives a direction, the learning rate is yours: learning_rate=0\.02 is a start"):
        lopt.load(direction_run)
    params = {"w": jax.random.normal(jax.random.key(0), (6, 4)), "b": jnp.ones(4)}
    one = some_steps(lopt.load(direction_run, learning_rate=0.1), params, 1)
    vectors = jnp.exp(10 * open_trained(direction_run).theta["vectors"])
    for path, w in params.items():
        size = 0.1 if w.ndim > 1 else 0.1 * vectors
        np.testing.assert_allclose(jnp.sqrt(jnp.mean((one[path] - w) ** 2)), size, rtol=1e-3)
    by_hand = optax.chain(lopt.scale_by(direction_run), optax.add_decayed_weights(0.5), optax.scale_by_learning_rate(0.1))
    decayed = some_steps(lopt.load(direction_run, learning_rate=0.1, weight_decay=0.5), params, 1)
    jax.tree.map(np.testing.assert_array_equal, decayed, some_steps(by_hand, params, 1))
    jax.tree.map(lambda a, b, w: np.testing.assert_allclose(a, b - 0.1 * 0.5 * w, rtol=1e-4, atol=1e-6), decayed, one, params)
    falling = lopt.load(direction_run, learning_rate=optax.linear_schedule(0.1, 0.0, 1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), some_steps(falling, params, 2), one)


def test_a_direction_that_is_told_the_steps_has_the_rate_and_schedule_of_its_meta_training(tmp_path):
    rule = lopt.DirectionRule(learning_rate=0.02, rate_schedule="warmup_cosine")
    run = make_run(tmp_path / "run", lopt.LearnedOptimizerConfig(rule, lopt.Celo2Features(), lopt.DeepSetsConfig((4,))))
    params, steps = {"w": jax.random.normal(jax.random.key(0), (6, 4)), "b": jnp.ones(4)}, 20
    rates = [min(1.0, (t + 1) / 2) * 0.5 * (1 + np.cos(np.pi * np.clip((t / 20 - 0.1) / 0.9, 0, 1))) for t in range(steps)]
    by_hand = lopt.load(run, learning_rate=lambda t: 0.02 * jnp.asarray(rates, jnp.float32)[t])
    found = some_steps(lopt.load(run, num_steps=steps), params, steps)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), found, some_steps(by_hand, params, steps))
    decayed = some_steps(lopt.load(run, num_steps=steps, weight_decay=0.5), params, 1)
    plain = some_steps(lopt.load(run, num_steps=steps), params, 1)
    jax.tree.map(lambda a, b, w: np.testing.assert_allclose(a, b - 0.01 * 0.5 * w, rtol=1e-4, atol=1e-6), decayed, plain, params)


def test_what_sets_its_own_step_size_takes_decay_and_no_rate():
    params = {"w": jax.random.normal(jax.random.key(0), (6, 4))}
    plain, decayed = (some_steps(lopt.load("paper-deep-sets", weight_decay=d), params, 1) for d in (0.0, 0.5))
    assert float(jnp.linalg.norm(decayed["w"])) < float(jnp.linalg.norm(plain["w"])), "weights do not grow"
    with pytest.raises(ValueError, match=r"sets its own step size and takes no learning_rate; .* optax\.scale\(0\.5\)"):
        lopt.load("paper-deep-sets", learning_rate=0.1)
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        lopt.load("paper-deep-sets", num_steps=0)


def test_what_the_network_sees_may_be_kept_in_half_the_memory(tmp_path):
    params = {"w": jnp.full((64, 32), 0.1), "b": jnp.zeros(32)}

    def state_of(source, state_dtype):
        tx = lopt.load(source, num_steps=10, state_dtype=state_dtype)
        leaves = [leaf for leaf in jax.tree.leaves(tx.init(params)) if leaf.shape]
        return some_steps(tx, params), sum(leaf.nbytes for leaf in leaves) / sum(leaf.size for leaf in jax.tree.leaves(params))

    whole, bytes_whole = state_of("paper-deep-sets", None)
    halved, bytes_halved = state_of("paper-deep-sets", "bfloat16")
    assert (bytes_whole, bytes_halved) == (28, 16), "six momenta of 2 bytes, and the rule's own of 4"
    for path, leaf in halved.items():
        moved = jnp.abs(whole[path] - params[path]).max()
        assert jnp.abs(leaf - whole[path]).max() < 0.05 * moved
    _, of_direction = state_of("lopt-direction", "bfloat16")
    assert of_direction < state_of("lopt-direction", None)[1] - 8, (
        "three momenta and a second moment, some of it by rows and columns"
    )
    same = lopt.scale_by("lopt-direction", state_dtype="bfloat16").init(params)
    assert jnp.dtype(jnp.bfloat16) in {leaf.dtype for leaf in jax.tree.leaves(same)}
    with pytest.raises(ValueError, match="state_dtype must be one of 'float32', 'bfloat16', got 'float16'"):
        lopt.load("lopt-direction", num_steps=10, state_dtype="float16")
    sgdm = make_run(tmp_path / "run", LearnedSGDMConfig())
    with pytest.raises(ValueError, match="has no features, so it takes no state_dtype"):
        lopt.load(sgdm, state_dtype="bfloat16")


def test_what_anneals_is_told_the_number_of_steps(tmp_path):
    rule = lopt.NominalRule(schedule=lopt.ScheduleConfig("cosine", time=False))
    run = make_run(tmp_path / "run", lopt.LearnedOptimizerConfig(rule, None, None))
    params = {"w": jnp.ones((2, 3))}
    with pytest.raises(ValueError, match=r"num_steps=N in lopt\.load"):
        some_steps(lopt.load(run), params, 1)
    three = some_steps(lopt.load(run, num_steps=3), params, 3)
    jax.tree.map(
        np.testing.assert_array_equal, some_steps(lopt.load(run, num_steps=3), params, 5), three
    )  # the rate is zero then


def test_a_decay_of_the_users_takes_the_place_of_a_learned_one(tmp_path):
    params = {"w": jax.random.normal(jax.random.key(0), (6, 4))}
    for name, rule, rate in (("gated", lopt.GatedRule, {}), ("direction", lopt.DirectionRule, {"learning_rate": 0.1})):
        decays = rule(weight_decay=0.3, learn_weight_decay=True)
        run = make_run(tmp_path / name, lopt.LearnedOptimizerConfig(decays, lopt.Celo2Features(), lopt.DeepSetsConfig((4,))))
        learned = float(jnp.exp(10 * open_trained(run).theta["weight_decay"]))
        tiny, own, half = (some_steps(lopt.load(run, weight_decay=d, **rate), params, 1)["w"] for d in (1e-9, 0.0, 0.5))
        np.testing.assert_allclose((tiny - own) / learned, (tiny - half) / 0.5, rtol=1e-2, atol=1e-6)
        assert float(jnp.linalg.norm(tiny - half)) > 1e-3


@pytest.mark.parametrize(
    ("name", "value"),
    [("lopt-direction", "learning_rate"), ("lopt-direction", "weight_decay"), ("paper-unf", "weight_decay")],
)
def test_hyperparameters_may_be_traced(name, value):
    """`optax.inject_hyperparams` makes the transform anew in every jitted step, of numbers that are not known."""
    params = {f"dense{i}": {"kernel": jnp.ones(s) * 0.1, "bias": jnp.ones(s[1])} for i, s in enumerate([(5, 4), (4, 3)])}
    spec = WeightSpec.parse({f"dense{i}": {"kernel": axes, "bias": axes.split()[1]} for i, axes in enumerate(["x! h", "h y!"])})
    fixed = {"num_steps": 10, "spec": spec} if value == "weight_decay" else {}

    def make(number):
        return lopt.load(name, **{value: number}, **fixed)

    found = some_steps(optax.inject_hyperparams(make)(number=0.2), params, 2)
    jax.tree.map(np.testing.assert_array_equal, found, some_steps(make(0.2), params, 2))


@pytest.mark.filterwarnings("ignore:.*relations between these weights")
@pytest.mark.parametrize("network", [lopt.DeepSetsConfig((4,)), slow(UNFConfig((4,))), slow(UNFConfig((4,), share="role"))])
def test_a_rule_that_reads_the_spec_is_loaded_with_it(network, tmp_path):
    """The steps of hidden layers are divided by their inputs whatever the leaves are called; without a spec it says so."""
    params = {"a_head": jnp.ones((6, 10)), "b_head": jnp.ones(10), "in": jnp.ones((16, 6)), "in_bias": jnp.ones(6)}
    hidden = {"a_head": "units y", "b_head": "y", "in": "x units", "in_bias": "units"}  # as if both had hidden layers around them
    runs = [
        make_run(
            tmp_path / str(fan_in), lopt.LearnedOptimizerConfig(lopt.DirectionRule(fan_in=fan_in), lopt.Celo2Features(), network)
        )
        for fan_in in (True, False)
    ]
    fits_any = not network.couples_weights or network.by_role
    spec = WeightSpec.parse(hidden) if fits_any else OTHER
    divided, plain = (some_steps(lopt.load(run, learning_rate=0.1, spec=spec), params, 1) for run in runs)
    if fits_any:
        inputs = {"a_head": 6, "b_head": 1, "in": 16, "in_bias": 1}
        for path, w in params.items():
            np.testing.assert_allclose(w - divided[path], (w - plain[path]) / inputs[path], rtol=1e-3, atol=1e-6)
    else:  # here neither is hidden: inputs and classes keep their places
        jax.tree.map(np.testing.assert_array_equal, divided, plain)
    with pytest.raises(ValueError, match=r"must know which axes of the weights belong together"):
        lopt.load(runs[0], learning_rate=0.1)


def test_theta_shared_by_role_without_its_shared_map_is_refused(tmp_path):
    optimizer = lopt.LearnedOptimizerConfig(lopt.GatedRule(), lopt.Celo2Features(), UNFConfig((4,), share="role"))
    run = make_run(tmp_path / "run", optimizer)
    theta, *_ = checkpoint.chosen_theta(run)
    del theta["network"]["last"]["shared"]["kernel"]
    checkpoint.save(run, 3, {"theta": theta})
    with pytest.raises(CardError, match="theta has no leaf 'network/last/shared/kernel', which its config asks for"):
        lopt.load(run, spec=OTHER)
