"""UNF's own terms, meta-trained alone beside the pointwise map of a DeepSets that corrects Shampoo's step, on Figure 2's MLP.

Command:  python scripts/meta_train.py --config configs/shampoo_mlp_terms.py --run-dir runs/shampoo/UNF-0
          for the DeepSets going on with --optimizer.network deep_sets --estimator.sigma 0.003 --estimator.sigmas --outer.learning-rate 3e-4
Cost:     960,000 inner steps: 5 minutes on 2 cores
Expect:   docs/research/nominal.md
"""

import dataclasses

from configs.shampoo_mlp import config as mean
from lopt.estimators.nres import NRESConfig
from lopt.networks.update import UNFConfig

STEPS = 600
REST = ("alpha", "beta", "nominal", "schedule", "network")
config = dataclasses.replace(
    mean,
    optimizer=dataclasses.replace(mean.optimizer, network=UNFConfig((16, 16))),
    estimator=NRESConfig(particles=16, sigmas=(*((part, 0.0) for part in REST), ("network/last/terms", 0.03))),
    outer=dataclasses.replace(mean.outer, learning_rate=3e-3, decay_steps=STEPS),
    held_out=dataclasses.replace(mean.held_out, every=50, seeds=8),
    outer_steps=STEPS,
    init_from="docs/reproduction/mlp_shampoo/theta/mean-{seed}",
)
