"""Shampoo's step corrected by a network, on Figure 2's MLP, meta-trained for the mean loss of the whole training.

Command:  python scripts/meta_train.py --config configs/shampoo_mlp.py --run-dir runs/shampoo/mean-0
Cost:     2.4 million inner steps: 8 to 10 minutes on 2 cores
Expect:   .3471 +- .0026 and .3418 +- .0025 with seeds 0 and 1, 3.19 and 2.91 times as fast as scheduled Adam (docs/research/nominal.md);
          shampoo_mlp_end.py and shampoo_mlp_terms.py go on from it
"""

import dataclasses

from configs.paper.mlp_rules import SCHEDULE, cpu, gated
from lopt.networks.update import DeepSetsConfig
from lopt.optimizers.gated import GatedRule
from lopt.optimizers.nominals import ShampooNominal

config = dataclasses.replace(
    cpu, optimizer=gated(GatedRule(nominal=ShampooNominal(), alpha=0.04, schedule=SCHEDULE), DeepSetsConfig((16, 16)))
)
