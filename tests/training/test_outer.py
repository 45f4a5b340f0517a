"""The optimizer of theta: schedules, frozen parts, the average, and gradients that are not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopt.estimators.base import Estimator
from lopt.optimizers.momentum import LearnedOptimizer
from lopt.training.outer import MetaTrainState, OuterConfig, check_freeze, make_outer_step

THETA = {"alpha": jnp.float32(1.0), "network": {"last": jnp.ones(2), "pointwise": jnp.ones(2)}}


def outer_steps(config, gradients, theta=THETA):
    """The states after outer steps with these meta-gradients, which stand in for the datasets."""
    estimator = Estimator(
        init=lambda key, theta: None, step=lambda key, theta, datasets, state: (datasets, state, {}), inner_steps=1
    )
    optimizer = LearnedOptimizer(lambda key: theta, lambda theta: optax.identity(), lambda theta: {})
    step = make_outer_step(0, estimator, config, optimizer)
    average = None if config.average is None else jax.tree.map(jnp.copy, theta)
    state = MetaTrainState(jax.tree.map(jnp.copy, theta), config.make().init(theta), None, average, jnp.float32(jnp.inf))
    states, infos = [], []
    for index, gradient in enumerate(gradients):
        state, info = step(np.int32(index), gradient, state)
        states.append(jax.device_get(state))
        infos.append(jax.device_get(info))
        state = jax.device_put(states[-1])
    return states, infos


ONES = jax.tree.map(jnp.ones_like, THETA)


def test_a_meta_gradient_that_is_not_finite_is_skipped_and_counted():
    bad = {**ONES, "alpha": jnp.float32(jnp.nan)}
    (first, second), infos = outer_steps(OuterConfig(learning_rate=0.1), [ONES, bad])
    assert [int(info["skipped"]) for info in infos] == [0, 1]
    jax.tree.map(np.testing.assert_array_equal, first, second)
    np.testing.assert_allclose(first.theta["alpha"], 0.9, rtol=1e-5)


def test_frozen_parts_wait_even_for_weight_decay():
    config = OuterConfig(
        0.1, clip_norm=np.inf, optimizer="adamw", options=(("weight_decay", 0.5),), freeze=(("network/last", 2), ("alpha", 1))
    )
    states, infos = outer_steps(config, [ONES] * 3)
    moved = [
        {
            "alpha": s.theta["alpha"] != 1,
            "last": np.any(s.theta["network"]["last"] != 1),
            "rest": np.any(s.theta["network"]["pointwise"] != 1),
        }
        for s in states
    ]
    assert moved == [
        {"alpha": False, "last": False, "rest": True},
        {"alpha": True, "last": False, "rest": True},
        {"alpha": True, "last": True, "rest": True},
    ]
    np.testing.assert_allclose([info["gradient_norm"] for info in infos], np.sqrt([2, 3, 5]), rtol=1e-6)


def test_the_average_is_exponential_and_is_what_evaluations_take():
    states, _ = outer_steps(OuterConfig(0.5, clip_norm=np.inf, optimizer="sgd", average=0.75), [ONES, ONES])
    np.testing.assert_allclose([s.theta["alpha"] for s in states], [0.5, 0.0])
    np.testing.assert_allclose([s.average["alpha"] for s in states], [0.875, 0.65625])
    assert states[0].evaluated is states[0].average
    assert outer_steps(OuterConfig(), [ONES])[0][0].average is None


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (OuterConfig(1.0), {0: 1.0, 100: 1.0}),
        (OuterConfig(1.0, decay_steps=100), {0: 1.0, 50: 0.55, 100: 0.1, 500: 0.1}),
        (OuterConfig(1.0, warmup_steps=10), {0: 0.0, 5: 0.5, 10: 1.0, 99: 1.0}),
        (OuterConfig(1.0, decay_steps=110, warmup_steps=10, final_fraction=0.0), {5: 0.5, 10: 1.0, 60: 0.5, 110: 0.0}),
    ],
)
def test_schedules(config, expected):
    schedule = config.schedule()
    found = {step: float(schedule(step)) if callable(schedule) else schedule for step in expected}
    assert found == pytest.approx(expected)


def test_any_optimizer_of_optax_by_name():
    states, _ = outer_steps(OuterConfig(0.5, clip_norm=1.0, optimizer="sgd", options=(("momentum", 0.5),)), [ONES, ONES])
    step = 0.5 / np.sqrt(5)  # clipped from norm sqrt(5)
    np.testing.assert_allclose([s.theta["alpha"] for s in states], [1 - step, 1 - step - 1.5 * step], rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "adm"}, "got 'adm'; did you mean .*adam"),
        ({"optimizer": "chain"}, "takes a learning rate, got 'chain'"),
        ({"options": (("beta1", 0.9),)}, r"outer.options has \['beta1'\]; optax.adam takes \['b1', 'b2'"),
        ({"options": (("learning_rate", 0.9),)}, r"outer.options has \['learning_rate'\]"),
        ({"learning_rate": 0.0}, "outer.learning_rate and outer.clip_norm must be positive"),
        ({"decay_steps": 5, "warmup_steps": 5}, "outer.decay_steps must be None or more than outer.warmup_steps=5, got 5"),
        ({"final_fraction": 2.0}, r"outer.final_fraction must lie in \[0, 1\], got 2.0"),
        ({"final_fraction": 0.5}, "outer.final_fraction=0.5 does nothing without outer.decay_steps"),
        ({"average": 1.0}, r"outer.average must lie in \[0, 1\) or be None, got 1.0"),
        ({"warmup_steps": -1}, "outer.warmup_steps must not be negative"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        OuterConfig(**settings)


def test_a_frozen_part_must_be_one():
    check_freeze(OuterConfig(freeze=(("network", 5),)), THETA)
    with pytest.raises(ValueError, match=r"outer.freeze names \['net'\], but theta has the parts \['alpha', 'network/last'"):
        check_freeze(OuterConfig(freeze=(("net", 5),)), THETA)
