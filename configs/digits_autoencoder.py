"""A UNF optimizer for an autoencoder of the digits of scikit-learn, horizon 500: no download.

Command:  python scripts/meta_train.py --config configs/digits_autoencoder.py --run-dir runs/digits_autoencoder
Cost:     800,000 inner steps of 1.1 ms of a core each: 8 minutes on 2 idle cores
Expect:   not run to the end here yet. Adam at .032 has a training loss of .264 to .266 nats a pixel after 500 steps

A variational autoencoder is `--task.variational`; its loss has the divergence too.
"""

import lopt
from tasks.autoencoder import AutoencoderConfig

config = lopt.MetaTrainConfig(
    task=AutoencoderConfig(dataset="digits", hidden=(32,), latent=8, batch_size=128),
    optimizer=lopt.LearnedMomentumConfig(alpha=0.1, beta=0.01, network=lopt.UNFConfig(share="role")),
    estimator=lopt.NRESConfig(),
    unroll=lopt.UnrollConfig(horizon=500, meta_loss="mean"),
    outer=lopt.OuterConfig(learning_rate=3e-3, decay_steps=500),
    evaluation=lopt.EvaluationConfig(steps=500, seeds=5, baselines=("nadamw", "muon"), schedules=("warmup_cosine",)),
    outer_steps=500,
)
