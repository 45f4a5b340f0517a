"""A UNF optimizer for a small CNN on the digits of scikit-learn, horizon 300: no download.

Command:  python scripts/meta_train.py --config configs/digits_cnn.py --run-dir runs/digits_cnn
Cost:     800,000 inner steps: 1.5 hours at the 150 inner steps/s that 2 busy cores gave in the first outer steps
Expect:   not run to the end here yet. Adam at .03 has a training loss of .02 to .03 after 300 steps
"""

import lopt
from tasks.cnn import CNNConfig

config = lopt.MetaTrainConfig(
    task=CNNConfig(dataset="digits", image_size=8, channels=(16, 32), batch_size=128),
    optimizer=lopt.LearnedMomentumConfig(alpha=0.3, beta=0.02, network=lopt.UNFConfig(terms=None)),
    estimator=lopt.PESConfig(),
    unroll=lopt.UnrollConfig(horizon=300, meta_loss="mean"),
    outer=lopt.OuterConfig(learning_rate=4e-3, decay_steps=500),
    evaluation=lopt.EvaluationConfig(steps=300, seeds=10),
    outer_steps=500,
)
