"""A UNF optimizer for an RNN of 32 units on the reference that comes with Python, horizon 500, by the paper's rule: no download.

Command:  python scripts/meta_train.py --config configs/python_docs_rnn.py --run-dir runs/python_docs_rnn
Cost:     480,000 inner steps: 6 minutes on 2 older cores that have other work
Expect:   final training loss 2.228 +- .008 with seed 1 and 2.197 +- .008 with seed 0; Adam with its best constant rate: 2.186, 2.199

f begins at a tenth of its size, so that beta can begin at .1: docs/research/saddle.md has why. The step size falls as if there were to be
600 outer steps; `--outer-steps 600` goes on from there.
"""

import dataclasses

import lopt
from configs.paper.mlp_rules import beginning_small
from configs.paper.rnn_rules import cpu

small = beginning_small(cpu)
config = dataclasses.replace(
    small, optimizer=dataclasses.replace(small.optimizer, network=lopt.UNFConfig((32, 32, 32))), outer_steps=300
)
