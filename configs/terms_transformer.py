"""UNF's own terms, meta-trained alone beside the pointwise map of a meta-trained DeepSets: the Transformer of terms_mlp.py's comparison.

Command:  python scripts/meta_train.py --config configs/terms_transformer.py --run-dir runs/terms/transformer/UNF-0
          for the DeepSets going on with --optimizer.network deep_sets --estimator.sigma 0.003 --estimator.sigmas --outer.learning-rate 3e-4
Cost:     480,000 inner steps: 5 to 7 minutes on 2 shared cores
Expect:   final training loss 2.510 (DeepSets that goes on 2.530) with seed 0, 2.529 (2.542) with seed 1; scheduled Adam 2.535
"""

from configs.paper.transformer_rules import cpu
from configs.terms_mlp import from_the_report

config = from_the_report(cpu, "transformer", outer_steps=300, rate=3e-3)
