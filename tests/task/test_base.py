"""What a task must be given, what it makes of that, and that model states and variants of a family go through an inner training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopt.estimators.pes import PESConfig
from lopt.evaluation.rollout import metrics_fn, seed_keys, train_fn
from lopt.optimizers.momentum import LearnedOptimizer, LearnedSGDMConfig
from lopt.symmetry import WeightSpec
from lopt.symmetry.spec import named_leaves
from lopt.task.base import ArraySplit, Datasets, Task, TaskFamily
from lopt.unroll import Clock, UnrollConfig, make_unroll


def datasets(examples=6, batch_size=3):
    def split(seed):
        return ArraySplit(
            {"x": jnp.asarray(np.random.default_rng(seed).normal(size=(examples, 2)).astype(np.float32))}, batch_size
        )

    return Datasets(*map(split, range(4)))


def init(key):
    return {"w": jax.random.normal(key, (2,))}


def loss(params, key, batch):
    return jnp.mean(jnp.square(batch["x"] @ params["w"] - 1.0))


def task(**functions):
    functions = functions or {"init": init, "loss": loss}
    return Task(name="line", **functions, spec=WeightSpec.parse({"w": "w!"}), datasets=datasets(), initial_loss=1.0)


def averaging():
    """Its state is the mean of the inputs it has seen and the number of batches; the inputs are centred by it."""

    def init_with_state(key):
        return init(key), {"mean": jnp.zeros(2), "count": jnp.int32(0)}

    def loss_with_state(params, state, key, batch):
        mean = state["mean"] + (jnp.mean(batch["x"], axis=0) - state["mean"]) / (state["count"] + 1).astype(jnp.float32)
        noise = jax.random.normal(key)
        return loss(params, key, {"x": batch["x"] - mean[None]}) + noise, {"mean": mean, "count": state["count"] + 1}

    def metrics_with_state(params, state, key, batch):
        return {"loss": loss(params, key, {"x": batch["x"] - state["mean"][None]}), "count": state["count"]}

    return task(init_with_state=init_with_state, loss_with_state=loss_with_state, metrics_with_state=metrics_with_state)


def scaled_family():
    """The targets are `variant` times larger, and of the training examples only the first two are seen."""

    def task_fn(variant):
        return task(init=init, loss=lambda params, key, batch: variant * loss(params, key, batch))

    def view(variant, data):
        return dataclasses.replace(data, train=ArraySplit({"x": data.train.arrays["x"][:2]}, 3))

    return TaskFamily(
        name="scaled", sample=lambda key: jax.random.uniform(key, (), minval=1.0, maxval=3.0), task_fn=task_fn, view=view
    )


KEY = jax.random.key(3)


def batch_of(problem, seed=0):
    return problem.datasets.at(0).train.batch(jax.random.key(seed))


# --- The functions of a task


def test_a_task_without_state_has_the_empty_state():
    one = task()
    params, state = one.init_with_state(KEY)
    np.testing.assert_array_equal(params["w"], one.init(KEY)["w"])
    value, after = one.loss_with_state(params, state, KEY, batch_of(one))
    assert (state, after) == ((), ())
    assert value == one.loss(params, KEY, batch_of(one))
    assert one.metrics(params, KEY, batch_of(one)) == one.metrics_with_state(params, (), KEY, batch_of(one)) == {}


def test_a_task_with_state_can_be_called_without():
    one = averaging()
    params, state = one.init_with_state(KEY)
    np.testing.assert_array_equal(one.init(KEY)["w"], params["w"])
    batch = batch_of(one)
    assert one.loss(params, KEY, batch) == one.loss_with_state(params, state, KEY, batch)[0]
    assert one.metrics(params, KEY, batch) == one.metrics_with_state(params, state, KEY, batch)
    assert jax.tree.map(jnp.shape, one.param_shapes()) == {"w": (2,)}


def test_replaced_functions_replace_what_was_made_of_them():
    double = dataclasses.replace(task(), loss=lambda *args: 2 * loss(*args))
    params, batch = init(KEY), batch_of(double)
    assert double.loss_with_state(params, (), KEY, batch)[0] == 2 * loss(params, KEY, batch)
    one = averaging()
    state = one.init_with_state(KEY)[1]
    double = dataclasses.replace(one, loss_with_state=lambda *args: (2 * one.loss_with_state(*args)[0], args[1]))
    assert double.loss(params, KEY, batch) == 2 * one.loss_with_state(params, state, KEY, batch)[0]


@pytest.mark.parametrize("one", [task(), averaging()], ids=["plain", "stateful"])
def test_a_wrapped_task_keeps_the_functions_that_are_not_given(one):
    params, state = one.init_with_state(KEY)
    batch = batch_of(one)
    wrapped = one.with_functions(loss=lambda *args: (3 * one.loss_with_state(*args)[0], args[1]))
    assert wrapped.loss(params, KEY, batch) == 3 * one.loss(params, KEY, batch)
    np.testing.assert_array_equal(wrapped.init(KEY)["w"], params["w"])
    assert wrapped.metrics_with_state(params, state, KEY, batch) == one.metrics_with_state(params, state, KEY, batch)
    again = wrapped.with_functions(init=lambda key: (jax.tree.map(jnp.zeros_like, params), state))
    assert again.loss(params, KEY, batch) == 3 * one.loss(params, KEY, batch)
    assert not np.any(again.init(KEY)["w"])


@pytest.mark.parametrize(
    ("functions", "given"),
    [
        ({"init": init}, "init"),
        ({"init": init, "loss_with_state": loss}, "init, loss_with_state"),
        ({"init": init, "loss": loss, "loss_with_state": loss}, "init, loss, loss_with_state"),
        ({"init_with_state": init, "loss_with_state": loss, "metrics": loss}, "init_with_state, loss_with_state, metrics"),
        ({"metrics": loss}, "metrics"),
    ],
)
def test_functions_that_do_not_go_together_are_named(functions, given):
    with pytest.raises(ValueError, match=f"task 'line' is given {given}; it needs init and loss"):
        task(**functions)


# --- States and variants in an inner training


def windows(problem, count):
    """States and losses of `count` windows of three steps that leave the weights alone, and what they saw."""
    still = optax.with_extra_args_support(optax.set_to_zero())
    optimizer = LearnedOptimizer(lambda key: {}, lambda theta: still, lambda theta: {})
    unroll = make_unroll(UnrollConfig(horizon=6, truncation=3), problem, optimizer)
    state = unroll.start(KEY, {}).inner
    states, seen, losses = [state], [], []
    for index in range(count):
        seen.append(unroll.window(jax.random.key(index), problem.datasets.at(0), state.variant))
        state, loss, _ = jax.jit(unroll.steps)({}, state, seen[-1], jnp.int32(6))
        states.append(state)
        losses.append(loss)
    return states, seen, losses


def test_the_state_of_a_model_goes_through_the_unroll_and_receives_the_keys():
    states, seen, losses = windows(averaging(), 2)
    assert [int(state.model["count"]) for state in states] == [0, 3, 6]
    batches = np.concatenate([np.asarray(window.batches["x"]) for window in seen])
    np.testing.assert_allclose(states[-1].model["mean"], batches.mean(axis=(0, 1)), rtol=1e-5)
    mean = batches[:4].mean(axis=(0, 1))
    noise = jax.random.normal(seen[1].keys[0])
    np.testing.assert_allclose(losses[1][0], loss(init(KEY), KEY, {"x": batches[3] - mean[None]}) + noise, rtol=1e-5)


def test_a_family_draws_a_variant_at_each_start_and_keeps_it():
    family = scaled_family()
    states, seen, losses = windows(family, 2)
    assert states[0].variant == states[1].variant == states[2].variant
    assert 1 < float(states[0].variant) < 3
    np.testing.assert_array_equal(states[0].params["w"], init(KEY)["w"])
    examples = {row.tobytes() for row in np.asarray(family.datasets.at(0).train.arrays["x"][:2])}
    assert {row.tobytes() for row in np.asarray(seen[0].batches["x"]).reshape(-1, 2)} == examples
    first = {"x": seen[0].batches["x"][0]}
    np.testing.assert_allclose(losses[0][0], states[0].variant * loss(states[0].params, KEY, first), rtol=1e-5)
    starts = jax.vmap(family.start)(jax.random.split(KEY, 50)).variant
    assert len(np.unique(np.asarray(starts))) == 50


def test_what_is_alike_in_a_family_is_not_kept_from_inside_a_program():
    family = scaled_family()
    jax.jit(lambda key: family.task_fn(family.sample(key)).loss(family.example.init(key), key, batch_of(family)))(KEY)
    assert jnp.isfinite(family.example.loss(init(KEY), KEY, batch_of(family)))
    assert family.spec == task().spec
    assert jax.tree.map(jnp.shape, family.param_shapes()) == {"w": (2,)}


def test_a_task_is_the_family_without_variants():
    one = task()
    assert one.sample(KEY) == one.start(KEY).variant == ()
    assert one.task_fn(()) is one.example is one
    assert one.view((), one.datasets) is one.datasets
    family = TaskFamily(name="one", sample=one.sample, task_fn=one.task_fn, view=one.view)
    jax.tree.map(np.testing.assert_array_equal, family.start(KEY), one.start(KEY))


def test_losses_are_normalised_and_capped_in_that_scale():
    one = dataclasses.replace(task(), normalizer=lambda loss: loss / 10)
    optimizer = LearnedSGDMConfig().make(one.spec)
    unroll = make_unroll(UnrollConfig(horizon=2, truncation=2, loss_cap=2.0, meta_loss="mean"), one, optimizer)
    theta = optimizer.init(KEY)
    start, window = unroll.start(KEY, theta).inner, unroll.window(KEY, one.datasets, ())
    _, losses, _ = unroll.steps(theta, start, window, jnp.int32(2))
    np.testing.assert_allclose(
        losses[0], one.loss(start.params, KEY, jax.tree.map(lambda x: x[0], window.batches)) / 10, rtol=1e-5
    )
    found = jnp.asarray([0.15, 0.25])  # the cap is 2 * 1.0 / 10
    out, _ = unroll.losses(found, found, Clock(jnp.int32(0), jnp.int32(2), jnp.int32(0)), jnp.inf)
    assert int(out.capped) == 1
    np.testing.assert_allclose(out.meta_loss, (0.15 + 0.2) / 2, rtol=1e-6)


def test_an_evaluation_uses_the_state_that_training_ended_with():
    one, steps = averaging(), 5
    keys = seed_keys(KEY, 3)
    trained, _ = train_fn(one, optax.sgd, steps)(jnp.float32(0.1), keys, one.datasets)
    np.testing.assert_array_equal(trained.model["count"], [steps] * 3)
    tests = metrics_fn(one)(None, (trained, keys), one.datasets)
    np.testing.assert_array_equal(tests["count"], [steps] * 3)
    for seed in range(3):  # the metric named loss takes the place of the loss in training, which is noisy
        x = np.asarray(one.datasets.test.arrays["x"]) - np.asarray(trained.model["mean"][seed])
        np.testing.assert_allclose(tests["loss"][seed], np.mean((x @ trained.params["w"][seed] - 1) ** 2), rtol=1e-4)


def test_each_seed_of_an_evaluation_draws_a_variant():
    family = scaled_family()
    keys = seed_keys(KEY, 4)
    trained, _ = train_fn(family, optax.sgd, 3)(jnp.float32(0.0), keys, family.datasets)
    assert len(np.unique(np.asarray(trained.variant))) == 4
    tests = metrics_fn(family)(None, (trained, keys), family.datasets)
    x = np.asarray(family.datasets.at(0).test.arrays["x"])
    for seed in range(4):
        expected = trained.variant[seed] * np.mean((x @ trained.params["w"][seed] - 1) ** 2)
        np.testing.assert_allclose(tests["loss"][seed], expected, rtol=1e-4)


def test_both_members_of_a_pair_start_alike_and_anew_at_a_restart():
    one = averaging()
    family = TaskFamily(name="averaging", sample=jax.random.uniform, task_fn=lambda variant: one)
    optimizer = LearnedSGDMConfig(alpha=0.01).make(one.spec)
    unroll = make_unroll(UnrollConfig(horizon=4, truncation=2, stagger=False, loss_cap=np.inf), family, optimizer)
    estimator = PESConfig(particles=2).make(unroll)
    theta = optimizer.init(KEY)
    state = jax.jit(estimator.init)(KEY, theta)
    step = jax.jit(estimator.step)
    counts, variants = [], []
    for index in range(5):
        leaves = named_leaves(state)
        counts += [np.asarray(leaf) for name, leaf in leaves if name.endswith("model/count")]
        variants += [np.asarray(leaf) for name, leaf in leaves if name.endswith("variant")]
        _, state, info = step(jax.random.key(index), theta, family.datasets, state)
        assert int(info["finished"]) == (2 if index % 2 else 0)
    np.testing.assert_array_equal(counts, [np.full((2, 2), count) for count in (0, 2, 0, 2, 0)])  # particles, members
    for index, variant in enumerate(variants):
        np.testing.assert_array_equal(variant[:, 0], variant[:, 1])
        np.testing.assert_array_equal(variant, variants[index - index % 2])
    assert len(np.unique(variants)) == 6  # of two particles at three starts
