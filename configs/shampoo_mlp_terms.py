"""UNF's own terms, meta-trained alone beside the pointwise map of a DeepSets that corrects Shampoo's step, on Figure 2's MLP.

Command:  python scripts/meta_train.py --config configs/shampoo_mlp_terms.py --run-dir runs/shampoo/UNF-0
          for the DeepSets going on with --optimizer.network deep_sets --estimator.sigma 0.003 --estimator.sigmas --outer.learning-rate 2e-4
Cost:     2.9 million inner steps: 14 minutes on 2 cores
Expect:   final training loss of 20 seeds .3457 (DeepSets that goes on .3515) with seed 0, .3437 (.3475) with 1 (docs/research/nominal.md)
"""

from configs.shampoo_mlp import config as mean
from configs.terms_mlp import terms_alone

REST = ("alpha", "beta", "nominal", "schedule", "network")
config = terms_alone(
    mean, (16, 16), REST, outer_steps=1800, rate=2e-3, init_from="docs/reproduction/mlp_shampoo/theta/mean-{seed}"
)
