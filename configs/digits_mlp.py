"""A UNF optimizer for an MLP on the digits of scikit-learn: learns in minutes, the demo.

Command:  python scripts/meta_train.py --config configs/digits_mlp.py --run-dir runs/digits_mlp
Cost:     3 minutes on 2 idle cores (500 outer steps, 800,000 inner steps), and one more for scripts/evaluate.py
Expect:   tuned Adam's final training loss in about 150 steps, where Adam takes 272, and a final loss of 0.006 to 0.009; tuned SGDM ends
          at 0.008
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
    task=MLPConfig(dataset="digits", hidden=(32,), batch_size=128),
    optimizer=LearnedMomentumConfig(alpha=0.3, beta=0.02, network=UNFConfig(terms=None)),
    estimator=PESConfig(),
    unroll=UnrollConfig(horizon=300, meta_loss="mean"),
    outer=OuterConfig(learning_rate=4e-3, decay_steps=500),
    evaluation=EvaluationConfig(steps=300, seeds=10, tuning_seeds=10),
    outer_steps=500,
)
