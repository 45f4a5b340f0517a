"""What steps of optimizers cost, beside those of Adam."""

import itertools

import jax.numpy as jnp
import pytest

from lopt.evaluation import costs as costs_module
from lopt.evaluation.baselines import find_baseline
from lopt.evaluation.costs import measure_costs
from lopt.evaluation.tuning import Search
from tests.evaluation.problems import quadratic, sgd


def test_costs_are_those_of_adam_for_adam():
    adam = find_baseline("adam").opt_fn
    costs = measure_costs(quadratic(1.0), {"mine": (adam, jnp.float32(0.1)), "plain": (sgd, jnp.float32(0.1))}, turns=3)
    assert costs["mine"].state_bytes == pytest.approx(2 * 4 + 4 / 3)  # two moments of three weights, and a count
    assert costs["plain"].state_bytes == 0
    assert 0.2 < costs["mine"].time_ratio < 5.0  # the same program, on a machine that others use
    assert costs["plain"].memory_ratio < costs["mine"].memory_ratio == 1.0
    assert all(0 < cost.seconds < 1 for cost in costs.values())


def test_costs_of_a_schedule_are_not_those_of_a_given_rate():
    adam, scheduled = find_baseline("adam"), Search(1e-3, 1e-1, schedules=("constant", "cosine"))
    theta = scheduled.theta(scheduled.grid()[0], 10)
    optimizers = {"tuned": (adam.opt_fn, theta), "given": (adam.opt_fn, jnp.float32(0.1))}
    costs = measure_costs(quadratic(1.0), optimizers, turns=1)
    assert costs["tuned"].state_bytes == pytest.approx(costs["given"].state_bytes + 4 / 3)  # the schedule counts steps too
    assert costs["given"].memory_ratio == 1.0


def test_a_call_that_is_kept_waiting_does_not_settle_how_long_a_turn_is(monkeypatch):
    """One step is a matter of microseconds: where another process has the core meanwhile, it says nothing of the step."""
    call, calls = costs_module.Steps._call, itertools.count()
    monkeypatch.setattr(costs_module.Steps, "_call", lambda self: call(self) + 1.0 * (next(calls) == 1))
    steps = costs_module.Steps(sgd, jnp.float32(0.1), {"w": jnp.ones(3)})
    assert steps._steps > 100
