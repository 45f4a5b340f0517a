"""The paper's rule on Figure 2's MLP in two minutes, for questions about its recipe: estimator, outer rate, what is minimised.

Command:  python scripts/meta_train.py --config configs/questions_mlp.py --run-dir runs/questions/nres-0
          and with what is asked, such as --estimator pes, or --estimator gpes --estimator.reuse 200
Cost:     960,000 inner steps: 2 minutes on 2 cores
Expect:   final training loss .410 with seed 0, .438 with seed 1; docs/research/recipe.md has the questions and answers
"""

import dataclasses

from configs.paper.mlp_rules import beginning_small, cpu
from lopt.networks.update import DeepSetsConfig

STEPS = 600
_start = beginning_small(cpu)
config = dataclasses.replace(
    _start,
    optimizer=dataclasses.replace(_start.optimizer, network=DeepSetsConfig((32, 32, 32))),
    outer=dataclasses.replace(_start.outer, decay_steps=STEPS),
    outer_steps=STEPS,
)
