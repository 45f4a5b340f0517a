"""A UNF optimizer for a residual network on the digits of scikit-learn, horizon 300: no download.

Command:  python scripts/meta_train.py --config configs/digits_resnet.py --run-dir runs/digits_resnet
Cost:     800,000 inner steps; not run yet. One of Adam's took 28 ms on 2 very busy cores
Expect:   not run to the end here yet. Adam at .032 has a training loss of .27 to .30 after 100 steps

Normalisation by the batch at hand; `--task.normalization layer` is that of each example.
"""

import lopt
from tasks.resnet import ResNetConfig

config = lopt.MetaTrainConfig(
    task=ResNetConfig(dataset="digits", channels=(4, 8), batch_size=64),
    optimizer=lopt.LearnedMomentumConfig(alpha=0.1, beta=0.01, network=lopt.UNFConfig(share="role")),
    estimator=lopt.NRESConfig(),
    unroll=lopt.UnrollConfig(horizon=300, meta_loss="mean"),
    outer=lopt.OuterConfig(learning_rate=3e-3, decay_steps=500),
    evaluation=lopt.EvaluationConfig(steps=300, seeds=5, baselines=("nadamw", "muon"), schedules=("warmup_cosine",)),
    outer_steps=500,
)
