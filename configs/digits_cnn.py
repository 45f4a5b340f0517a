"""A UNF optimizer for a small CNN on the digits of scikit-learn, horizon 300: no download.

Command:  python scripts/meta_train.py --config configs/digits_cnn.py --run-dir runs/digits_cnn
Cost:     800,000 inner steps: 1.5 hours at the 150 inner steps/s that 2 busy cores gave in the first outer steps
Expect:   not run to the end here yet. Adam at .03 has a training loss of .02 to .03 after 300 steps
"""

from lopt.estimators.pes import PESConfig
from lopt.evaluation.evaluate import EvaluationConfig
from lopt.networks.update import UNFConfig
from lopt.optimizers.momentum import LearnedMomentumConfig
from lopt.training.outer import OuterConfig
from lopt.training.trainer import MetaTrainConfig
from lopt.unroll import UnrollConfig
from tasks.cnn import CNNConfig

config = MetaTrainConfig(
    task=CNNConfig(dataset="digits", image_size=8, channels=(16, 32), batch_size=128),
    optimizer=LearnedMomentumConfig(alpha=0.3, beta=0.02, network=UNFConfig(terms=None)),
    estimator=PESConfig(),
    unroll=UnrollConfig(horizon=300, meta_loss="mean"),
    outer=OuterConfig(learning_rate=4e-3, decay_steps=500),
    evaluation=EvaluationConfig(steps=300, seeds=10),
    outer_steps=500,
)
