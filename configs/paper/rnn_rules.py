"""Figure 2's RNN under the paper's rule and under a learned correction of Muon's step, each with DeepSets and with UNF.

Command:  python scripts/paper_tables.py figure2 --task rnn_rules --budget cpu
Budgets:  cpu: 960,000 inner steps a run, 2 seeds; start: the same with 4 seeds, f from a tenth of its size and beta from .1
Cost:     cpu: 7 to 10 minutes a run on 2 idle cores, 10 runs

What mlp_rules.py is for the MLP: NRES in place of PES, UNF as a pointwise map shared by all tensors plus a small multiple of its own
terms, and rivals by hand with schedules. The smaller RNN of rnn.py.
"""

import dataclasses

from configs.paper.mlp_rules import BEGINS, MUON, RECIPE, STARTS, beginning_small, gated
from configs.paper.mlp_rules import cpu as mlp
from configs.paper.rnn import cpu as smaller
from lopt.comparison import Budget, ComparisonConfig, Rival
from lopt.networks.update import DeepSetsConfig, UNFConfig
from lopt.training.trainer import MetaTrainConfig

STEPS = 600
cpu = dataclasses.replace(
    smaller,
    estimator=mlp.estimator,
    outer=dataclasses.replace(mlp.outer, decay_steps=STEPS),
    evaluation=dataclasses.replace(mlp.evaluation, steps=500),
    outer_steps=STEPS,
)
RIVALS = (
    Rival("SGDM"),
    Rival("DeepSets", DeepSetsConfig((32, 32, 32))),
    Rival("UNF", UNFConfig((32, 32, 32))),
    Rival("Muon_DeepSets", optimizer=gated(MUON, DeepSetsConfig((16, 16)))),
    Rival("Muon_UNF", optimizer=gated(MUON, UNFConfig((16, 16)))),
)
TEXT = "The reference that comes with Python instead of LM1B."
SMALLER = (
    "Embedding 16 and 32 units instead of 32 and 64; 8 characters and batches of 32 instead of 16 and 64.",
    "Inner trainings of 500 steps instead of 2,000.",
    TEXT,
)
DIFFERS = ("600 outer steps instead of 50,000.", *RECIPE)


def budgets(experiment: MetaTrainConfig, smaller: tuple[str, ...]) -> tuple[Budget, ...]:
    """The experiment, and the same with an f that begins small; `smaller`: how its task differs from the paper's."""
    return (
        Budget("cpu", experiment, seeds=2, differs=(*smaller, "2 meta-seeds.", *DIFFERS, BEGINS)),
        Budget("start", beginning_small(experiment), seeds=4, differs=(*smaller, "4 meta-seeds.", *DIFFERS, STARTS)),
    )


config = ComparisonConfig(title="RNN of 32 units on Python's reference", rivals=RIVALS, budgets=budgets(cpu, SMALLER))
