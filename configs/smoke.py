"""Everything once, in seconds: a tiny UNF optimizer for a tiny MLP, to see that all parts work together.

Command:  python scripts/meta_train.py --config configs/smoke.py --run-dir runs/smoke
Cost:     about 20 seconds on 2 cores, nearly all of it compilation
Expect:   files in runs/smoke; nothing is learned in so few steps
"""

from lopt.estimators.pes import PESConfig
from lopt.evaluation.evaluate import EvaluationConfig
from lopt.networks.update import UNFConfig
from lopt.optimizers.momentum import LearnedMomentumConfig
from lopt.training.outer import OuterConfig
from lopt.training.trainer import MetaTrainConfig
from lopt.unroll import UnrollConfig
from tasks.mlp import MLPConfig

config = MetaTrainConfig(
    task=MLPConfig(dataset="digits", hidden=(4,), batch_size=16),
    optimizer=LearnedMomentumConfig(beta=0.01, network=UNFConfig((4,), terms=None)),
    estimator=PESConfig(particles=4),
    unroll=UnrollConfig(horizon=20, truncation=5, meta_loss="mean"),
    outer=OuterConfig(learning_rate=3e-3),
    evaluation=EvaluationConfig(steps=20, seeds=2, tuning_seeds=1, points_per_decade=1),
    outer_steps=10,
    save_every=2,
)
