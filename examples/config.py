"""Meta-train a UNF optimizer on any of the examples, or on a task of your own, named as `module:function`.

python scripts/meta_train.py --config examples/config.py --task.function examples.plain_jax:make_task --run-dir runs/plain_jax
python scripts/evaluate.py --run-dir runs/plain_jax

Cost: a minute or two on two CPU cores. It shows the way; an optimizer worth its name takes more outer steps.
"""

from lopt import (
    EvaluationConfig,
    ImportedTaskConfig,
    LearnedMomentumConfig,
    MetaTrainConfig,
    OuterConfig,
    PESConfig,
    UNFConfig,
    UnrollConfig,
)

config = MetaTrainConfig(
    task=ImportedTaskConfig("examples.plain_jax:make_task"),
    optimizer=LearnedMomentumConfig(beta=0.01, network=UNFConfig((8,), terms=None)),
    estimator=PESConfig(particles=8),
    unroll=UnrollConfig(horizon=100, truncation=20),
    outer=OuterConfig(learning_rate=3e-3),
    evaluation=EvaluationConfig(steps=100, seeds=4, tuning_seeds=2),
    outer_steps=100,
)
