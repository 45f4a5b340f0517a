"""Held-out evaluations of a direction are at its best of several rates."""

import jax
import pytest

from lopt.features.presets import Celo2Features
from lopt.networks.update import DeepSetsConfig
from lopt.optimizers.config import LearnedOptimizerConfig
from lopt.optimizers.direction import DirectionRule
from lopt.training.held_out import HeldOutConfig, make_held_out
from lopt.training.mixture import optimizer_of
from tasks.mlp import MLPConfig

TASK = MLPConfig(image_size=4, hidden=(5,), batch_size=16)
RULE = DirectionRule(rate_schedule="warmup_cosine")
OPTIMIZER = LearnedOptimizerConfig(RULE, Celo2Features(), DeepSetsConfig((4,)))


def test_the_best_of_several_multiples_counts():
    problem = TASK.make()
    theta = optimizer_of(OPTIMIZER, problem).init(jax.random.key(0))

    def evaluated(*multiples):
        config = HeldOutConfig(every=1, steps=20, seeds=2, multiples=multiples)
        return make_held_out(config, OPTIMIZER, {problem.name: problem}, theta, seed=0)(theta)

    name = f"held_out/{problem.name}"
    alone = {multiple: evaluated(multiple) for multiple in (0.03, 3.0, 1000.0)}
    assert f"{name}/multiple" not in alone[3.0]
    assert alone[3.0][name] < alone[0.03][name] < alone[1000.0][name]
    together = evaluated(0.03, 3.0, 1000.0)
    assert together == {**alone[3.0], f"{name}/multiple": 3.0}


@pytest.mark.parametrize("multiples", [(), (1.0, 0.0), (-1.0,)])
def test_multiples_are_positive(multiples):
    with pytest.raises(ValueError, match=r"held_out\.multiples must be positive"):
        HeldOutConfig(multiples=multiples)
