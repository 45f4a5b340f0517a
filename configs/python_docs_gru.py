"""A UNF optimizer for gated recurrent units on the reference that comes with Python, horizon 500: no download.

Command:  python scripts/meta_train.py --config configs/python_docs_gru.py --run-dir runs/python_docs_gru
Cost:     800,000 inner steps of 5.3 ms of a core each: 35 minutes on 2 idle cores
Expect:   not run to the end here yet. Adam at .01 has a training loss of 1.90 (2.7 bits per character) after 500 steps
"""

import lopt
from tasks.gru import GRUConfig

config = lopt.MetaTrainConfig(
    task=GRUConfig(dataset="python_docs", hidden=(32,), batch_size=64),
    optimizer=lopt.LearnedMomentumConfig(alpha=0.1, beta=0.01, network=lopt.UNFConfig(share="role")),
    estimator=lopt.NRESConfig(),
    unroll=lopt.UnrollConfig(horizon=500, meta_loss="mean"),
    outer=lopt.OuterConfig(learning_rate=3e-3, decay_steps=500),
    evaluation=lopt.EvaluationConfig(steps=500, seeds=5, baselines=("nadamw", "muon"), schedules=("warmup_cosine",)),
    outer_steps=500,
)
