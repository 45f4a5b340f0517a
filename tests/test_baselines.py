import math

import jax
import jax.numpy as jnp
import numpy as np
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


def test_an_unknown_baseline_is_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"'lion'.*adam.*sgdm"):
        find_baseline("lion")


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
