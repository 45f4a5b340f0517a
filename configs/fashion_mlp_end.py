"""Muon's step corrected by a network, meta-trained for the end of the training after it was meta-trained for all of it.

Command:  python scripts/meta_train.py --config configs/fashion_mlp_end.py --run-dir runs/end
          for the UNF with --optimizer.network unf --optimizer.network.hidden 16 16
          --init-from docs/reproduction/mlp_rules-cpu/theta/Muon_UNF-0
Cost:     1 million inner steps: 4 minutes on 2 older cores
Expect:   .3364 +- .0023 with DeepSets, .3380 +- .0028 with UNF, where tuned Muon has .3452 (docs/research/nominal.md)

The mean loss asks for speed: it goes on falling while the loss at the end rises again. So theta is first meta-trained for the mean, which
every window tells something of, and from there for the last quarter.
"""

import dataclasses

from configs.paper.mlp_rules import MUON, cpu, gated
from lopt.networks.update import DeepSetsConfig
from lopt.unroll import UnrollConfig

STEPS = 600
config = dataclasses.replace(
    cpu,
    optimizer=gated(MUON, DeepSetsConfig((16, 16))),
    unroll=UnrollConfig(horizon=2000, truncation=50, meta_loss="last", last=500),
    outer=dataclasses.replace(cpu.outer, decay_steps=STEPS),
    outer_steps=STEPS,
    init_from="docs/reproduction/mlp_rules-cpu/theta/Muon_DeepSets-0",
)
