"""A comparison of one's own: three learned optimizers on the digits, each meta-trained from several seeds.

Command:  python scripts/compare.py --config examples/comparison.py --budget smoke
Budgets:  small: 300 outer steps, 3 seeds, about half an hour on 2 cores; smoke: two minutes, nearly all of it compilation
On a task of your own: add --task my_task.py:make_task
"""

import dataclasses

import lopt
from configs.smoke import config as smoke
from lopt.comparison import Budget, ComparisonConfig, Rival
from tasks.mlp import MLPConfig

small = lopt.MetaTrainConfig(
    task=MLPConfig(dataset="digits", hidden=(32,)),
    optimizer=lopt.LearnedMomentumConfig(beta=0.01),  # what the rivals have in common; each puts its own network in
    estimator=lopt.PESConfig(particles=8),
    unroll=lopt.UnrollConfig(horizon=300, truncation=25, meta_loss="mean"),
    outer=lopt.OuterConfig(learning_rate=3e-3),
    held_out=lopt.HeldOutConfig(every=25, steps=300, seeds=2),
    evaluation=lopt.EvaluationConfig(steps=300, seeds=5, baselines=("adam", "sgdm")),
    outer_steps=300,
)

config = ComparisonConfig(
    title="MLP 64-32-10 on the digits, 8x8",
    rivals=(Rival("SGDM"), Rival("DeepSets", lopt.DeepSetsConfig((16, 16))), Rival("UNF", lopt.UNFConfig((16, 16)))),
    budgets=(
        Budget("small", small, seeds=3),
        Budget("smoke", dataclasses.replace(smoke, held_out=lopt.HeldOutConfig(every=5, steps=20, seeds=2)), seeds=2),
    ),
)
