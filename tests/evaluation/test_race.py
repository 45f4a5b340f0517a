"""Races are fair: the same weights and batches for all, on seeds that nobody has seen."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopt.evaluation.evaluate import RACE, TUNE, evaluate
from lopt.evaluation.race import Competitor, race
from lopt.evaluation.rollout import seed_keys
from tests.evaluation.problems import SMALL, needs_value, quadratic, sgd


def test_all_competitors_have_the_same_weights_and_batches():
    task = quadratic(1.0, noise=0.5)
    competitors = [
        Competitor("still", sgd, jnp.float32(0.0)),
        Competitor("as still", needs_value, jnp.float32(0.0)),
        Competitor("moving", sgd, jnp.float32(0.5)),
    ]
    still, as_still, moving = race(task, competitors, jax.random.key(0), steps=8, seeds=3)
    np.testing.assert_array_equal(still.losses, as_still.losses)
    np.testing.assert_array_equal(still.losses[:, 0], moving.losses[:, 0])
    assert np.all(still.losses[:, 1:] != moving.losses[:, 1:])
    assert len(np.unique(still.losses)) == still.losses.size  # a new batch at each step, other seeds other batches


def test_competitors_that_share_a_function_share_its_compilation():
    calls = []

    def counted(rate):
        calls.append(rate)
        return optax.sgd(rate)

    competitors = [Competitor(str(rate), counted, jnp.float32(rate)) for rate in (0.1, 0.2, 0.3)]
    curves = race(quadratic(1.0), competitors, jax.random.key(0), steps=3, seeds=2)
    assert len(calls) == 1
    final = [curve.losses[0, -1] for curve in curves]
    np.testing.assert_allclose(np.array(final) / curves[0].losses[0, 0], [(1 - rate) ** 4 for rate in (0.1, 0.2, 0.3)], rtol=1e-4)


def test_names_that_are_given_twice_are_found_before_anything_is_tuned():
    said = []
    competitors = [Competitor("twice", sgd, jnp.float32(0.1))] * 2
    with pytest.raises(ValueError, match=r"given twice: \['twice'\]"):
        evaluate(quadratic(1.0), competitors, SMALL, seed=0, progress=said.append)
    assert not said


def test_names_must_differ():
    competitor = Competitor("twice", sgd, jnp.float32(0.1))
    with pytest.raises(ValueError, match="twice"):
        race(quadratic(1.0), [competitor, competitor], jax.random.key(0), steps=1, seeds=1)


def test_seeds_of_race_tuning_and_meta_training_are_disjoint():
    root = jax.random.key(0)
    keys = [
        seed_keys(jax.random.fold_in(root, RACE), 50),
        seed_keys(jax.random.fold_in(root, TUNE), 50),
        seed_keys(root, 1000),  # what a meta-training may fold in: small numbers such as outer steps
        jax.random.split(root, 50),
    ]
    data = [set(map(tuple, np.asarray(jax.random.key_data(group)).tolist())) for group in keys]
    for a, b in itertools.combinations(data[:3], 2):
        assert not a & b
    assert not (data[0] | data[1]) & data[3]
    assert len(data[0]) == len(data[1]) == 50
    assert min(RACE, TUNE) > 10**8
