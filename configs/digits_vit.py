"""A UNF optimizer for a Transformer on patches of the digits of scikit-learn, horizon 500: no download.

Command:  python scripts/meta_train.py --config configs/digits_vit.py --run-dir runs/digits_vit
Cost:     800,000 inner steps of 5.3 ms of a core each: 35 minutes on 2 idle cores
Expect:   not run to the end here yet. Adam at .01 has a training loss of .06 to .10 after 300 steps
"""

from lopt.estimators.nres import NRESConfig
from lopt.evaluation.evaluate import EvaluationConfig
from lopt.networks.update import UNFConfig
from lopt.optimizers.momentum import LearnedMomentumConfig
from lopt.training.outer import OuterConfig
from lopt.training.trainer import MetaTrainConfig
from lopt.unroll import UnrollConfig
from tasks.vit import ViTConfig

config = MetaTrainConfig(
    task=ViTConfig(dataset="digits", blocks=1, width=16, batch_size=64),
    optimizer=LearnedMomentumConfig(alpha=0.1, beta=0.01, network=UNFConfig(share="role")),
    estimator=NRESConfig(),
    unroll=UnrollConfig(horizon=500, meta_loss="mean"),
    outer=OuterConfig(learning_rate=3e-3, decay_steps=500),
    evaluation=EvaluationConfig(steps=500, seeds=5, baselines=("nadamw", "muon"), schedules=("warmup_cosine",)),
    outer_steps=500,
)
