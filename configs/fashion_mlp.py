"""The paper's MLP recipe: a UNF optimizer for a 64-32-10 MLP on FashionMNIST at 8x8, horizon 2,000.

Command:  python scripts/meta_train.py --config configs/fashion_mlp.py --run-dir runs/fashion_mlp
Cost:     80 million inner steps: about 3 hours on 2 idle cores at 7,000 to 8,000 inner steps/s; 4 hours on a TPU v3-8 in the paper
Expect:   not run to the end here yet. An independent re-run of the paper reports 1.16 +- .18 times fewer steps than tuned Adam
          (arXiv 2507.01649, table 6); tuned rivals end at .490 (SGDM 0.1) and .479 (Adam 0.01) after 2,000 steps

All values are the paper's but the outer learning rate, which it does not state; 1e-4 is that of a follow-up with the same set-up.
To swap f, change `network` in a copy of this file: UNFConfig() (3,783 meta-parameters with the three scalars), NFNConfig() (3,783),
DeepSetsConfig() (2,788); or the whole optimizer: LearnedSGDMConfig() (2).
"""

import lopt
from tasks.mlp import MLPConfig

config = lopt.MetaTrainConfig(
    task=MLPConfig(dataset="fashion_mnist", image_size=8, hidden=(32,), batch_size=128),
    optimizer=lopt.LearnedMomentumConfig(alpha=0.1, g0=0.9, beta=0.001, network=lopt.UNFConfig((32, 32, 32), terms=None)),
    estimator=lopt.PESConfig(particles=16, sigma=0.01),
    unroll=lopt.UnrollConfig(horizon=2000, truncation=50, meta_loss="final"),
    outer=lopt.OuterConfig(learning_rate=1e-4, clip_norm=1.0),
    evaluation=lopt.EvaluationConfig(steps=2000, seeds=5),
    outer_steps=50_000,
    save_every=100,
)
