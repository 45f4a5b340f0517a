"""A UNF optimizer for a deeper Transformer on the reference that comes with Python, horizon 1,000: no download.

Command:  python scripts/meta_train.py --config configs/python_docs_deep_transformer.py --run-dir runs/python_docs_deep_transformer
Cost:     800,000 inner steps; not run yet. Adam's take some 6 ms of a core each
Expect:   not run yet. Adam at .001 has a training loss of 2.29 (3.3 bits per character) after 1,000 steps

Its size is in fields: `--task.blocks`, `--task.width`, `--task.heads`, `--task.mlp`; f is shared by role, so that theta serves all.
"""

import lopt
from tasks.transformer import TransformerConfig

config = lopt.MetaTrainConfig(
    task=TransformerConfig(dataset="python_docs", length=16, blocks=6, width=32, heads=4, head_width=8, mlp=128, batch_size=8),
    optimizer=lopt.LearnedMomentumConfig(alpha=0.1, beta=0.01, network=lopt.UNFConfig(share="role")),
    estimator=lopt.NRESConfig(),
    unroll=lopt.UnrollConfig(horizon=1000, meta_loss="mean"),
    outer=lopt.OuterConfig(learning_rate=3e-3, decay_steps=500),
    evaluation=lopt.EvaluationConfig(steps=1000, seeds=5, baselines=("nadamw", "muon"), schedules=("warmup_cosine",)),
    outer_steps=500,
)
