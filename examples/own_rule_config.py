"""The rule, feature and network of own_rule.py on digits: meta_train.py --config examples/own_rule_config.py --run-dir RUN

Seconds; RUN can then be raced, python scripts/evaluate.py --run-dir RUN, and loaded, lopt.load(RUN).
"""

import lopt
from examples.own_rule import Agreement, MeanNetwork, SignRule
from lopt.features import Gradient, Value
from tasks.mlp import MLPConfig

config = lopt.MetaTrainConfig(
    task=MLPConfig(dataset="digits", image_size=8, hidden=(16,), batch_size=64),
    optimizer=lopt.LearnedOptimizerConfig(
        SignRule(), lopt.CustomFeatures(parts=(Value(), Gradient(), Agreement())), MeanNetwork()
    ),
    estimator=lopt.NRESConfig(particles=4),
    unroll=lopt.UnrollConfig(horizon=50, truncation=10),
    outer_steps=20,
)
