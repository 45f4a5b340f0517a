"""Figure 2's Transformer under the paper's rule and under a learned correction of Muon's step, each with DeepSets and with UNF.

Command:  python scripts/paper_tables.py figure2 --task transformer_rules --budget cpu
Budgets:  cpu: 960,000 inner steps a run, 2 seeds; start: the same with 4 seeds, f from a tenth of its size and beta from .1
Cost:     cpu: 8 to 10 minutes a run on 2 idle cores, 10 runs

What mlp_rules.py is for the MLP, on the smaller Transformer of transformer.py: see rnn_rules.py.
"""

import dataclasses

from configs.paper.rnn_rules import RIVALS, TEXT, budgets
from configs.paper.rnn_rules import cpu as rnn
from configs.paper.transformer import cpu as smaller
from lopt.comparison import ComparisonConfig

cpu = dataclasses.replace(
    smaller, estimator=rnn.estimator, outer=rnn.outer, evaluation=rnn.evaluation, outer_steps=rnn.outer_steps
)
SMALLER = (
    "1 block of width 16 with 2 heads of 16 and a perceptron of 64, instead of 2 of 32 with 4 of 32 and 128.",
    "Inner trainings of 500 steps instead of 5,000.",
    TEXT,
)

config = ComparisonConfig(
    title="Transformer of 1 block, width 16, on Python's reference", rivals=RIVALS, budgets=budgets(cpu, SMALLER)
)
