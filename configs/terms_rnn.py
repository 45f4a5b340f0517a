"""UNF's own terms, meta-trained alone beside the pointwise map of a meta-trained DeepSets: the RNN of terms_mlp.py's comparison.

Command:  python scripts/meta_train.py --config configs/terms_rnn.py --run-dir runs/terms/rnn/UNF-0
          for the DeepSets going on with --optimizer.network deep_sets --estimator.sigma 0.003 --estimator.sigmas --outer.learning-rate 3e-4
Cost:     480,000 inner steps: 5 to 7 minutes on 2 shared cores
Expect:   final training loss 2.183 (DeepSets that goes on 2.200) with seed 0, 2.189 (2.209) with seed 1
"""

from configs.paper.rnn_rules import cpu
from configs.terms_mlp import from_the_report

config = from_the_report(cpu, "rnn", outer_steps=300, rate=3e-3)
