"""A UNF optimizer for a Transformer on patches of the digits of scikit-learn, horizon 500: no download.

Command:  python scripts/meta_train.py --config configs/digits_vit.py --run-dir runs/digits_vit
Cost:     800,000 inner steps of 5.3 ms of a core each: 35 minutes on 2 idle cores
Expect:   not run to the end here yet. Adam at .01 has a training loss of .06 to .10 after 300 steps
"""

import lopt
from tasks.vit import ViTConfig

config = lopt.MetaTrainConfig(
    task=ViTConfig(dataset="digits", blocks=1, width=16, batch_size=64),
    optimizer=lopt.LearnedMomentumConfig(alpha=0.1, beta=0.01, network=lopt.UNFConfig(share="role")),
    estimator=lopt.NRESConfig(),
    unroll=lopt.UnrollConfig(horizon=500, meta_loss="mean"),
    outer=lopt.OuterConfig(learning_rate=3e-3, decay_steps=500),
    evaluation=lopt.EvaluationConfig(steps=500, seeds=5, baselines=("nadamw", "muon"), schedules=("warmup_cosine",)),
    outer_steps=500,
)
