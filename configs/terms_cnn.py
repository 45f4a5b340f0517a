"""UNF's own terms, meta-trained alone beside the pointwise map of a meta-trained DeepSets: the CNN of terms_mlp.py's comparison.

Command:  python scripts/meta_train.py --config configs/terms_cnn.py --run-dir runs/terms/cnn/UNF-0
          for NFN's terms with --optimizer.network nfn, and for the DeepSets going on with
          --optimizer.network deep_sets --estimator.sigma 0.003 --estimator.sigmas --outer.learning-rate 3e-4
Cost:     480,000 inner steps: 2 to 3 minutes on 2 shared cores
Expect:   final training loss .638 (NFN .635, DeepSets that goes on .646) with seed 0, .604 (.622, .627) with seed 1
"""

from configs.paper.cnn_rules import start
from configs.terms_mlp import from_the_report

config = from_the_report(start, "cnn", outer_steps=300, rate=3e-3)
