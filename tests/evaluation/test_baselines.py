import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from lopt.evaluation.baselines import BASELINES, SCHEDULES, Hyper, Schedule, factor, find_baseline
from lopt.evaluation.evaluate import EvaluationConfig


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "adma",
            r"no baseline 'adma'; did you mean .*adam.*\? There are adam, muon, sgdm, shampoo, and every optimizer of optax",
        ),
        ("adamm", r"did you mean adam or \w+ or \w+\?"),
        ("zzzz", r"no baseline 'zzzz'\. There are adam, muon, sgdm"),
        ("scale_by_adam", "no baseline 'scale_by_adam'; did you mean"),
        ("chain", "no baseline 'chain'"),
        ("adam:", "'adam:': the learning rate after the colon must be a positive number, as in 'adam:1e-3'"),
        ("adam:fast", "'adam:fast': the learning rate"),
        ("adam:-0.1", "'adam:-0.1': the learning rate"),
        ("adam:nan", "'adam:nan': the learning rate"),
        ("adam@warm", "'@warm': the schedule after the @ must be one of constant, cosine, warmup_cosine"),
        ("adam:0.1@cosine", "Adam 0.1 is not tuned with a schedule, so '@cosine' says nothing of it"),
        (
            "lbfgs",
            "optax's lbfgs cannot be driven by a learning rate, gradients, weights and the loss alone .TypeError: .*value_fn",
        ),
        ("sophia", "optax's sophia cannot be driven by .*obj_fn"),
    ],
)
def test_what_is_no_baseline_is_named_with_what_is(name, message):
    with pytest.raises(ValueError, match=message):
        find_baseline(name)


def test_a_learning_rate_may_be_given():
    adam, given = find_baseline("adam"), find_baseline("adam:1e-3")
    assert (adam.learning_rate, given.learning_rate) == (None, 1e-3)
    assert (adam.label, given.label, find_baseline("lion:0.02").label) == ("tuned Adam", "Adam 0.001", "lion 0.02")
    assert adam.opt_fn is given.opt_fn  # so that they share one compilation
    assert find_baseline("lion").opt_fn is find_baseline("lion:0.02").opt_fn


def test_a_rival_may_be_tuned_with_a_schedule_of_its_own():
    config = EvaluationConfig(schedules=("cosine",), baselines=("adam", "muon@warmup_cosine", "adam@constant"))
    rivals = [find_baseline(name) for name in config.baselines]
    assert [rival.label for rival in rivals] == ["tuned Adam", "tuned muon, warmup cosine rate", "tuned Adam, constant rate"]
    assert [config.search(rival).schedules for rival in rivals] == [("cosine",), ("warmup_cosine",), ("constant",)]


@pytest.mark.parametrize(
    "name", ["adamw", "nadamw", "lion", "sgd", "rmsprop", "adafactor", "muon", "prodigy", "schedule_free_adamw", "momo"]
)
def test_optimizers_of_optax_are_known_by_name(name):
    """With a traced learning rate, driven as a race does, they are what optax makes of the same number."""
    params, grads = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}, {"kernel": jnp.full((2, 3), 0.5), "bias": jnp.ones(3)}
    factory = getattr(optax, name, None) or getattr(optax.contrib, name)

    def two_updates(transform):
        state = transform.init(params)
        for _ in range(2):
            updates, state = transform.update(grads, state, params, value=jnp.float32(0.7))
        return updates

    found = jax.jit(lambda rate: two_updates(find_baseline(name).opt_fn(rate)))(jnp.float32(0.03))
    with jax.numpy_dtype_promotion("standard"):
        expected = jax.jit(lambda: two_updates(optax.with_extra_args_support(factory(0.03))))()
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6), found, expected)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(found))


def adam_updates(gradients: list[float], rate: float) -> list[float]:
    m, v, updates = 0.0, 0.0, []
    for t, gradient in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        updates.append(-rate * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + 1e-8))
    return updates


def sgdm_updates(gradients: list[float], rate: float) -> list[float]:
    trace, updates = 0.0, []
    for gradient in gradients:
        trace = 0.9 * trace + gradient
        updates.append(-rate * trace)
    return updates


@pytest.mark.parametrize(("name", "expected"), [("adam", adam_updates), ("sgdm", sgdm_updates)])
def test_rivals_are_what_their_names_say_with_a_traced_learning_rate(name, expected):
    gradients, rate = [1.0, -0.5, 2.0, 0.25], 0.03

    @jax.jit
    def run(rate: jax.Array) -> jax.Array:
        transform = BASELINES[name].opt_fn(rate)
        state, updates = transform.init(jnp.zeros(1)), []
        for gradient in gradients:
            update, state = transform.update(jnp.array([gradient]), state, jnp.zeros(1))
            updates.append(update[0])
        return jnp.stack(updates)

    np.testing.assert_allclose(run(jnp.float32(rate)), expected(gradients, rate), rtol=1e-4)


@pytest.mark.parametrize("name", ["adam", "sgdm", "adamw", "nadamw", "rmsprop", "adafactor", "lion", "muon", "shampoo"])
def test_rivals_take_schedules_and_a_constant_one_changes_nothing(name):
    baseline, params = find_baseline(name), {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}
    assert baseline.has_schedule

    @jax.jit
    def third_update(hyper):
        transform = baseline.opt_fn(hyper)
        state, updates = transform.init(params), params
        for sign in (1.0, -1.0, 1.0):
            updates, state = transform.update(
                jax.tree.map(lambda p, s=sign: s * (0.5 + p), params), state, params, value=jnp.float32(1)
            )
        return updates

    plain = third_update(jnp.float32(0.01))
    constant = third_update(Hyper(jnp.float32(0.01), schedule=schedule("constant", 4)))
    cosine = third_update(Hyper(jnp.float32(0.01), schedule=schedule("cosine", 4)))  # half of the rate, after two of four steps
    for one, same, half in zip(*map(jax.tree.leaves, (plain, constant, cosine)), strict=True):
        np.testing.assert_allclose(same, one, rtol=1e-4)
        np.testing.assert_allclose(half, 0.5 * one, rtol=1e-4)


def schedule(name: str, steps: int) -> Schedule:
    return Schedule(*map(jnp.float32, (*SCHEDULES[name], steps)))


def test_schedules_are_optaxs():
    """Of which warm-up starts from zero: ours takes its first step at the rate that optax has after one."""
    steps = jnp.arange(40)
    for name, expected in (
        ("constant", optax.constant_schedule(1.0)),
        ("cosine", optax.cosine_decay_schedule(1.0, 40)),
        ("warmup_cosine", optax.warmup_cosine_decay_schedule(0.25, 1.0, 3, 39)),
    ):
        ours = jax.vmap(lambda t, name=name: factor(schedule(name, 40), t))(steps)
        with jax.numpy_dtype_promotion("standard"):
            theirs = jnp.asarray([expected(t) for t in steps])
        if name == "warmup_cosine":
            np.testing.assert_allclose(ours[:4], [0.25, 0.5, 0.75, 1.0])
            np.testing.assert_allclose(ours[4:], theirs[3:-1], atol=1e-6)
        else:
            np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_sgdm_takes_a_momentum():
    opt_fn = BASELINES["sgdm"].opt_fn
    for momentum in (0.0, 0.5, 0.99):
        transform = opt_fn(Hyper(jnp.float32(0.1), jnp.float32(momentum)))
        state = transform.init(jnp.zeros(1))
        _, state = transform.update(jnp.ones(1), state, jnp.zeros(1))
        update, _ = transform.update(jnp.ones(1), state, jnp.zeros(1))
        np.testing.assert_allclose(update, [-0.1 * (1 + momentum)], rtol=1e-6)


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_params_keep_their_dtype(name):
    transform = BASELINES[name].opt_fn(jnp.float32(0.1))
    params = jnp.ones(3, jnp.bfloat16)
    updates, _ = jax.jit(transform.update)(params, transform.init(params), params)
    assert updates.dtype == jnp.bfloat16
