"""A UNF optimizer for the paper's Transformer on the reference that comes with Python, horizon 1,000: no download.

Command:  python scripts/meta_train.py --config configs/python_docs_transformer.py --run-dir runs/python_docs_transformer
Cost:     800,000 inner steps: 1.5 hours at the 140 inner steps/s that 2 busy cores gave in the first outer steps
Expect:   not run to the end here yet. Adam at .003 has a training loss of 2.3 to 2.4 (3.4 bits per character) after 800 steps
"""

import lopt
from tasks.transformer import TransformerConfig

config = lopt.MetaTrainConfig(
    task=TransformerConfig(
        dataset="python_docs", tokenizer="chars", length=8, blocks=2, width=32, heads=4, head_width=32, mlp=128, batch_size=8
    ),
    optimizer=lopt.LearnedMomentumConfig(alpha=0.1, beta=0.01, network=lopt.UNFConfig(terms=None)),
    estimator=lopt.PESConfig(),
    unroll=lopt.UnrollConfig(horizon=1000, meta_loss="mean"),
    outer=lopt.OuterConfig(learning_rate=3e-3, decay_steps=500),
    evaluation=lopt.EvaluationConfig(steps=1000, seeds=10),
    outer_steps=500,
)
