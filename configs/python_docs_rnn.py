"""A UNF optimizer for the paper's RNN on the reference that comes with Python, horizon 500: no download.

Command:  python scripts/meta_train.py --config configs/python_docs_rnn.py --run-dir runs/python_docs_rnn
Cost:     800,000 inner steps: 1.5 hours at the 150 inner steps/s that 2 busy cores gave in the first outer steps
Expect:   not run to the end here yet. Adam at .01 has a training loss of 1.9 (2.7 bits per character) after 500 steps
"""

import lopt
from tasks.rnn import RNNConfig

config = lopt.MetaTrainConfig(
    task=RNNConfig(dataset="python_docs", tokenizer="chars", length=16, embedding=32, hidden=(64,), batch_size=64),
    optimizer=lopt.LearnedMomentumConfig(alpha=0.1, beta=0.01, network=lopt.UNFConfig(terms=None)),
    estimator=lopt.PESConfig(),
    unroll=lopt.UnrollConfig(horizon=500, meta_loss="mean"),
    outer=lopt.OuterConfig(learning_rate=3e-3, decay_steps=500),
    evaluation=lopt.EvaluationConfig(steps=500, seeds=10),
    outer_steps=500,
)
