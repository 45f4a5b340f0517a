"""Meta-train a UNF optimizer on any of the examples, or on a task of your own, named as `module:function`.

python scripts/meta_train.py --config examples/config.py --task.function examples.plain_jax:make_task --run-dir runs/plain_jax
python scripts/evaluate.py --run-dir runs/plain_jax

Cost: a minute or two on two CPU cores. It shows the way; an optimizer worth its name takes more outer steps.
"""

import lopt

config = lopt.MetaTrainConfig(
    task=lopt.ImportedTaskConfig("examples.plain_jax:make_task"),
    optimizer=lopt.LearnedMomentumConfig(beta=0.01, network=lopt.UNFConfig((8,), terms=None)),
    estimator=lopt.PESConfig(particles=8),
    unroll=lopt.UnrollConfig(horizon=100, truncation=20),
    outer=lopt.OuterConfig(learning_rate=3e-3),
    evaluation=lopt.EvaluationConfig(steps=100, seeds=4, tuning_seeds=2),
    outer_steps=100,
)
