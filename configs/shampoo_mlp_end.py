"""Shampoo's step corrected by a network, meta-trained for the end of the training after it was meta-trained for all of it.

Command:  python scripts/meta_train.py --config configs/shampoo_mlp_end.py --run-dir runs/shampoo/end-0
          for Muon's step with --optimizer.rule.nominal muon --init-from docs/reproduction/mlp_rules-cpu/theta/Muon_DeepSets-0
Cost:     1 million inner steps: 3 to 4 minutes on 2 cores
Expect:   .3343 +- .0023 and .3346 +- .0019 with seeds 0 and 1, where tuned Shampoo has .3398 and Muon .3452 (docs/research/nominal.md)

The mean loss asks for speed: it goes on falling while the loss at the end rises again. So theta is first meta-trained for the mean, which
every window tells something of, and from there for the last quarter.
"""

import dataclasses

from configs.shampoo_mlp import config as mean
from lopt.unroll import UnrollConfig

STEPS = 600
config = dataclasses.replace(
    mean,
    unroll=UnrollConfig(horizon=2000, truncation=50, meta_loss="last", last=500),
    outer=dataclasses.replace(mean.outer, decay_steps=STEPS),
    outer_steps=STEPS,
    init_from="docs/reproduction/mlp_shampoo/theta/best-{seed}",
)
