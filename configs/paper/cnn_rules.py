"""Figure 2's CNN under the paper's rule, f from a tenth of its size: SGDM, DeepSets, NFN and UNF.

Command:  python scripts/paper_tables.py figure2 --task cnn_rules --budget start
Budgets:  start: 960,000 inner steps a run, 2 seeds, f from a tenth of its size and beta from .1
Cost:     start: 3 (SGDM) to 6 minutes a run on 2 idle cores, 8 runs

What rnn_rules.py is for the RNN, on the smaller CNN of cnn.py. NFN too is a pointwise map shared by all tensors plus a small multiple of
its own terms.
"""

import dataclasses

from configs.paper.cnn import cpu as smaller
from configs.paper.mlp_rules import STARTS, beginning_small
from configs.paper.rnn_rules import DIFFERS
from configs.paper.rnn_rules import cpu as rnn
from lopt.comparison import Budget, ComparisonConfig, Rival
from lopt.networks.update import DeepSetsConfig, NFNConfig, UNFConfig

start = beginning_small(
    dataclasses.replace(smaller, estimator=rnn.estimator, outer=rnn.outer, evaluation=rnn.evaluation, outer_steps=rnn.outer_steps)
)

config = ComparisonConfig(
    title="CNN of 8 and 16 channels on FashionMNIST, 8x8",
    rivals=(
        Rival("SGDM"),
        Rival("DeepSets", DeepSetsConfig((32, 32, 32))),
        Rival("NFN", NFNConfig((32, 32, 32))),
        Rival("UNF", UNFConfig((32, 32, 32))),
    ),
    budgets=(
        Budget(
            "start",
            start,
            seeds=2,
            differs=(
                "FashionMNIST at 8x8 instead of CIFAR-10 at 16x16.",
                "Convolutions of 8 and 16 channels instead of 16 and 32, batches of 64 instead of 128.",
                "Inner trainings of 500 steps instead of 2,000.",
                "2 meta-seeds instead of 5.",
                *DIFFERS,
                STARTS,
            ),
        ),
    ),
)
