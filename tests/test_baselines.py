import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from lopt.baselines import BASELINES, TuningError, find_baseline, learning_rates, tune


def parabola(best: float):
    """Lowest at `best`, as steep on both sides in log space."""
    return lambda rate: abs(math.log10(rate) - math.log10(best))


def test_grids_are_rungs_of_one_ladder():
    assert learning_rates(1e-3, 3.0) == (0.001, 0.0032, 0.01, 0.032, 0.1, 0.32, 1.0, 3.2)
    assert learning_rates(1e-4, 0.3)[-1] == 0.32
    assert learning_rates(0.1, 1.0, points_per_decade=4) == (0.1, 0.18, 0.32, 0.56, 1.0)
    assert set(learning_rates(1e-2, 1e-1)) <= set(learning_rates(1e-3, 3.0))


@pytest.mark.parametrize("points_per_decade", range(1, 11))
def test_rungs_are_distinct_and_evenly_spaced(points_per_decade):
    rates = np.array(learning_rates(1e-4, 10.0, points_per_decade))
    assert len(rates) == 5 * points_per_decade + 1
    steps = np.diff(np.log10(rates)) * points_per_decade
    np.testing.assert_allclose(steps, 1.0, atol=0.25)  # rounding to two digits


@pytest.mark.parametrize(("low", "high", "points"), [(0.0, 1.0, 2), (-1.0, 1.0, 2), (1.0, 0.1, 2), (0.1, 1.0, 0), (0.1, 1.0, 11)])
def test_a_senseless_grid_is_refused(low, high, points):
    with pytest.raises(ValueError, match=r"low <= high|points_per_decade"):
        learning_rates(low, high, points)


def test_tune_finds_the_best_inside_the_grid():
    tuning = tune(parabola(0.04), 1e-3, 3.0)
    assert tuning.learning_rate == 0.032
    assert not tuning.at_edge
    assert [rate for rate, _ in tuning.tried] == list(learning_rates(1e-3, 3.0))
    assert dict(tuning.tried)[0.1] == pytest.approx(math.log10(0.1 / 0.04))


@pytest.mark.parametrize(("best", "ends"), [(12.0, (0.001, 32.0)), (1e-4, (3.2e-5, 3.2))])
def test_a_grid_whose_best_is_at_an_edge_is_extended_beyond_it(best, ends):
    tuning = tune(parabola(best), 1e-3, 3.0)
    assert abs(math.log10(tuning.learning_rate / best)) <= 0.25 + 1e-9
    assert not tuning.at_edge
    assert (tuning.tried[0][0], tuning.tried[-1][0]) == ends


def test_extension_is_bounded_and_says_so():
    tuning = tune(parabola(1e6), 0.1, 1.0, max_extensions=3)
    assert tuning.at_edge
    assert tuning.learning_rate == 32.0
    assert len(tuning.tried) == 3 + 3
    assert tune(parabola(1e6), 0.1, 1.0, max_extensions=0).learning_rate == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_worse_than_anything(bad):
    tuning = tune(lambda rate: 1e9 if rate < 0.05 else bad, 0.01, 1.0)
    assert tuning.learning_rate < 0.05
    assert dict(tuning.tried)[1.0] == math.inf


def test_where_all_diverge_the_search_goes_down():
    tuning = tune(lambda rate: 1.0 / rate if rate < 0.005 else math.nan, 0.01, 1.0)
    assert tuning.learning_rate == 0.0032


def test_where_nothing_trains_there_is_an_error():
    with pytest.raises(TuningError, match=r"every learning rate from 0\.001 to 1 diverged"):
        tune(lambda rate: math.nan, 0.01, 1.0, max_extensions=2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adma", r"no baseline 'adma'; did you mean .*adam.*\? There are adam, sgdm, and every optimizer of optax"),
        ("zzzz", r"no baseline 'zzzz'\. There are adam, sgdm"),
        ("scale_by_adam", "no baseline 'scale_by_adam'; did you mean"),
        ("chain", "no baseline 'chain'"),
        ("adam:", "'adam:': the learning rate after the colon must be a positive number, as in 'adam:1e-3'"),
        ("adam:fast", "'adam:fast': the learning rate"),
        ("adam:-0.1", "'adam:-0.1': the learning rate"),
        ("adam:nan", "'adam:nan': the learning rate"),
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


@pytest.mark.parametrize(
    "name", ["adamw", "lion", "sgd", "rmsprop", "adafactor", "muon", "prodigy", "schedule_free_adamw", "momo"]
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


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_params_keep_their_dtype(name):
    transform = BASELINES[name].opt_fn(jnp.float32(0.1))
    params = jnp.ones(3, jnp.bfloat16)
    updates, _ = jax.jit(transform.update)(params, transform.init(params), params)
    assert updates.dtype == jnp.bfloat16
