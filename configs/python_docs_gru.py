"""A UNF optimizer for gated recurrent units on the reference that comes with Python, horizon 500: no download.

Command:  python scripts/meta_train.py --config configs/python_docs_gru.py --run-dir runs/python_docs_gru
Cost:     800,000 inner steps of 5.3 ms of a core each: 35 minutes on 2 idle cores
Expect:   not run to the end here yet. Adam at .01 has a training loss of 1.90 (2.7 bits per character) after 500 steps
"""

from lopt.estimators.nres import NRESConfig
from lopt.evaluation.evaluate import EvaluationConfig
from lopt.networks.update import UNFConfig
from lopt.optimizers.momentum import LearnedMomentumConfig
from lopt.training.outer import OuterConfig
from lopt.training.trainer import MetaTrainConfig
from lopt.unroll import UnrollConfig
from tasks.gru import GRUConfig

config = MetaTrainConfig(
    task=GRUConfig(dataset="python_docs", hidden=(32,), batch_size=64),
    optimizer=LearnedMomentumConfig(alpha=0.1, beta=0.01, network=UNFConfig(share="role")),
    estimator=NRESConfig(),
    unroll=UnrollConfig(horizon=500, meta_loss="mean"),
    outer=OuterConfig(learning_rate=3e-3, decay_steps=500),
    evaluation=EvaluationConfig(steps=500, seeds=5, baselines=("nadamw", "muon"), schedules=("warmup_cosine",)),
    outer_steps=500,
)
