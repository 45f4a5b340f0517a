"""A UNF optimizer for a residual network on the digits of scikit-learn, horizon 300: no download.

Command:  python scripts/meta_train.py --config configs/digits_resnet.py --run-dir runs/digits_resnet
Cost:     800,000 inner steps; not run yet. One of Adam's took 28 ms on 2 very busy cores
Expect:   not run to the end here yet. Adam at .032 has a training loss of .27 to .30 after 100 steps

Normalisation by the batch at hand; `--task.normalization layer` is that of each example.
"""

from lopt.estimators.nres import NRESConfig
from lopt.evaluation.evaluate import EvaluationConfig
from lopt.networks.update import UNFConfig
from lopt.optimizers.momentum import LearnedMomentumConfig
from lopt.training.outer import OuterConfig
from lopt.training.trainer import MetaTrainConfig
from lopt.unroll import UnrollConfig
from tasks.resnet import ResNetConfig

config = MetaTrainConfig(
    task=ResNetConfig(dataset="digits", channels=(4, 8), batch_size=64),
    optimizer=LearnedMomentumConfig(alpha=0.1, beta=0.01, network=UNFConfig(share="role")),
    estimator=NRESConfig(),
    unroll=UnrollConfig(horizon=300, meta_loss="mean"),
    outer=OuterConfig(learning_rate=3e-3, decay_steps=500),
    evaluation=EvaluationConfig(steps=300, seeds=5, baselines=("nadamw", "muon"), schedules=("warmup_cosine",)),
    outer_steps=500,
)
