"""Everything once, in seconds: a tiny UNF optimizer for a tiny MLP, to see that all parts work together.

Command:  python scripts/meta_train.py --config configs/smoke.py --run-dir runs/smoke
Cost:     about 20 seconds on 2 cores, nearly all of it compilation
Expect:   files in runs/smoke; nothing is learned in so few steps
"""

import lopt
from tasks.mlp import MLPConfig

config = lopt.MetaTrainConfig(
    task=MLPConfig(dataset="digits", hidden=(4,), batch_size=16),
    optimizer=lopt.LearnedMomentumConfig(beta=0.01, network=lopt.UNFConfig((4,), terms=None)),
    estimator=lopt.PESConfig(particles=4),
    unroll=lopt.UnrollConfig(horizon=20, truncation=5, meta_loss="mean"),
    outer=lopt.OuterConfig(learning_rate=3e-3),
    evaluation=lopt.EvaluationConfig(steps=20, seeds=2, tuning_seeds=1, points_per_decade=1),
    outer_steps=10,
    save_every=2,
)
