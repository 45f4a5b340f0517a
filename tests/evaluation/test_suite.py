"""One optimizer on one task of a suite: budgets are prefixes of one search, races are the same for all, outcomes are kept."""

import dataclasses
import math

import jax
import numpy as np
import optax
import pytest

from lopt.config import from_dict, to_dict
from lopt.evaluation import suite as suite_module
from lopt.evaluation.suite import (
    Entrant,
    SuiteConfig,
    SuiteResult,
    SuiteTask,
    compete,
    identity,
    outcome_path,
    read_outcome,
    rival,
    save_outcome,
)
from tasks.mlp import MLPConfig

TASK = SuiteTask("MLP", MLPConfig(hidden=(4,), batch_size=16), steps=30)
CONFIG = SuiteConfig((TASK,), trials=(1, 3), seeds=2, optimizers=("nadamw", "sgdm"))


@pytest.fixture(scope="module")
def problem():
    return TASK.task.make()


@pytest.fixture(scope="module")
def outcome(problem):
    return compete(problem, rival("sgdm"), CONFIG, TASK.steps)


def test_every_budget_is_raced_at_its_best_trial(problem, outcome):
    assert (outcome.task, outcome.optimizer, outcome.trials, outcome.weights) == ("digits8_mlp_4", "sgdm", (1, 3), 310)
    assert (outcome.losses.shape, outcome.held_out.shape) == ((2, 2, 30), (2, 2))
    assert outcome.settings[0] == "0.1", "the first trial is the rate that one tries first"
    np.testing.assert_array_equal(outcome.losses[0, :, 0], outcome.losses[1, :, 0])  # from the same weights, on the same batches
    assert np.any(outcome.losses[0] != outcome.losses[1]) == (outcome.settings[0] != outcome.settings[1])
    assert np.all(np.isfinite(outcome.losses))
    assert outcome.seconds > 0


def test_more_trials_are_no_worse_and_begin_as_fewer(problem):
    """With tuning on the racing seeds' number of steps, a search of three trials is the beginning of one of five."""
    fewer = compete(problem, rival("sgdm"), dataclasses.replace(CONFIG, trials=(1, 3)), 20)
    more = compete(problem, rival("sgdm"), dataclasses.replace(CONFIG, trials=(1, 3, 5)), 20)
    assert more.settings[:2] == fewer.settings
    np.testing.assert_array_equal(more.losses[:2], fewer.losses)


def test_what_has_no_rate_of_the_users_is_raced_once_at_all_budgets(problem):
    learned = Entrant("learned", lambda given: optax.sgd(given[0]), np.float32(0.2), None)
    outcome = compete(problem, learned, CONFIG, 20)
    assert outcome.settings == ("", "")
    np.testing.assert_array_equal(outcome.losses[0], outcome.losses[1])


def test_a_learned_rate_is_tuned_with_the_same_schedule(problem):
    """An entrant that does as the rival does comes to the same."""
    by_hand = compete(problem, rival("sgdm"), CONFIG, 20)
    same = Entrant("mine", lambda given: rival("sgdm").opt_fn(((), given[1])), np.float32(7.0), 0.1)
    learned = compete(problem, same, CONFIG, 20)
    assert learned.settings == by_hand.settings
    np.testing.assert_allclose(learned.losses, by_hand.losses, rtol=1e-4)


def test_an_optimizer_that_always_diverges_is_raced_and_shown(problem):
    broken = Entrant("broken", lambda given: optax.scale(math.nan), np.float32(0.0), 0.1)
    with pytest.warns(UserWarning, match=r"every learning rate .* diverged; .* it is raced at 0.1"):
        outcome = compete(problem, broken, CONFIG, 20)
    assert np.isnan(outcome.losses[..., 1:]).all()


def test_outcomes_are_kept_for_what_they_depend_on(tmp_path, outcome):
    about = identity(CONFIG, TASK, "sgdm")
    path = outcome_path(tmp_path / "races", outcome.task, "runs/of mine/")
    assert path.name.startswith("of mine-")
    assert path != outcome_path(tmp_path / "races", outcome.task, "others/of mine")
    assert read_outcome(path, about) is None
    save_outcome(path, outcome, about)
    found = read_outcome(path, about)
    np.testing.assert_array_equal(found.losses, outcome.losses)
    assert dataclasses.replace(found, losses=0, held_out=0) == dataclasses.replace(outcome, losses=0, held_out=0)
    assert read_outcome(path, identity(CONFIG, dataclasses.replace(TASK, steps=31), "sgdm")) is None
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"PK" + content[2:100]):
        path.write_bytes(damaged)
        with pytest.warns(UserWarning, match="is damaged and counts as missing"):
            assert read_outcome(path, about) is None


def test_the_identity_is_of_all_that_an_outcome_depends_on():
    base = identity(CONFIG, TASK, "sgdm")
    assert identity(dataclasses.replace(CONFIG, tasks=(TASK, TASK), optimizers=("nadamw",)), TASK, "sgdm") == base
    others = [
        identity(CONFIG, TASK, "adam"),
        identity(CONFIG, TASK, "sgdm", np.ones(2)),
        identity(CONFIG, TASK, "sgdm", np.zeros(2)),
        identity(CONFIG, dataclasses.replace(TASK, task=MLPConfig()), "sgdm"),
        *(identity(dataclasses.replace(CONFIG, **{name: value}), TASK, "sgdm") for name, value in (
            ("trials", (1,)), ("seeds", 3), ("tuning_seeds", 2), ("schedule", "cosine"), ("window", 7), ("seed", 1)
        )),
    ]  # fmt: skip
    assert len({base, *others}) == 1 + len(others)


def test_aggregates_are_over_what_all_were_raced_on(outcome):
    names = ("nadamw", "sgdm")
    outcomes = {("a", name): dataclasses.replace(outcome, optimizer=name) for name in names} | {("b", "sgdm"): outcome}
    result = SuiteResult(CONFIG, {"a": "MLP", "b": "MLP"}, {"a": 30, "b": 30}, names, outcomes)
    assert result.complete == ["a"]
    reference, other = result.aggregates(3)
    assert (reference.ratio.value, other.ratio.value, other.speedup.value, other.rank.value) == (1.0, 1.0, 1.0, 1.5)
    np.testing.assert_allclose(result.losses("sgdm", 1), outcome.losses[0, :, -3:].mean(axis=1)[None], rtol=1e-6)
    with pytest.raises(ValueError, match="no task yet"):
        dataclasses.replace(result, outcomes={}).aggregates(1)


def test_a_suite_is_a_config():
    assert from_dict(to_dict(CONFIG)) == CONFIG


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tasks": ()}, "suite.tasks is empty"),
        ({"trials": (4, 1)}, r"suite.trials must be rising numbers from 1, got \(4, 1\)"),
        ({"trials": ()}, "suite.trials"),
        ({"seeds": 0}, "suite.seeds must be at least 1, got 0"),
        ({"schedule": "linear"}, "suite.schedule must be one of constant, cosine, warmup_cosine, got 'linear'"),
        ({"reference": "adam"}, "suite.reference 'adam' must be one of its optimizers, nadamw, sgdm"),
    ],
)
def test_suites_that_make_no_sense_are_refused(changes, named):
    with pytest.raises(ValueError, match=named):
        dataclasses.replace(CONFIG, **changes)


def test_rivals_have_no_rate_of_their_own():
    with pytest.raises(ValueError, match="leave the learning rate out"):
        rival("adam:1e-3")
    assert (rival("muon").start, rival("sgdm").start, rival("nadamw").start) == (0.02, 0.1, 1e-3)
    assert jax.tree.leaves(rival("muon").theta) == []
    assert suite_module.smoothing(CONFIG, 30) == 3
