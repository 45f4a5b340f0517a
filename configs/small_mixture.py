"""One role-shared UNF optimizer for MLPs of several widths and depths, a CNN and an RNN, on data that need no download.

Command:  python scripts/meta_train.py --config configs/small_mixture.py --run-dir runs/small_mixture
Cost:     4 to 5 minutes idle (800,000 inner steps at 3,400/s), of them 75 s compiling five tasks; 7 minutes beside other work
Expect:   runs/small_mixture/best holds the theta that does best on an MLP and a CNN of other shapes, which are never trained on:
          score .054 after 150 outer steps, .189 after 50. On the tasks it was trained on it beats its own start four times of five,
          and tuned Adam's final loss once (MLP 64-32, 5 seeds); on the CNN and the RNN Adam stays ahead, and on the
          narrow MLP 16-16-16 it is worse than its start: see this as a start, 800,000 steps are few

The losses are in units of a constant prediction's, so that no task counts for more because its losses are larger. To compare with an
optimizer that sees every weight alone, change `network` to DeepSetsConfig().
"""

import lopt
from tasks.cnn import CNNConfig
from tasks.mlp import MLPConfig
from tasks.rnn import RNNConfig

config = lopt.MetaTrainConfig(
    task=lopt.MixtureConfig(
        tasks=(
            MLPConfig(dataset="digits", hidden=(32,), batch_size=64),
            MLPConfig(dataset="digits", hidden=(64, 32), batch_size=64),
            MLPConfig(dataset="digits", hidden=(16, 16, 16), batch_size=64),
            CNNConfig(dataset="digits", channels=(8, 16), batch_size=64),
            RNNConfig(dataset="python_docs", hidden=(32,), embedding=16, length=8, batch_size=32),
        ),
        weights=(1.0, 1.0, 1.0, 1.0, 2.0),
    ),
    optimizer=lopt.LearnedMomentumConfig(alpha=0.1, beta=0.01, network=lopt.UNFConfig(share="role", terms=None)),
    estimator=lopt.NRESConfig(particles=4),
    unroll=lopt.UnrollConfig(horizon=300, truncation=50, meta_loss="mean"),
    outer=lopt.OuterConfig(learning_rate=3e-3, warmup_steps=10, decay_steps=400, average=0.95),
    held_out=lopt.HeldOutConfig(
        every=50,
        steps=200,
        seeds=2,
        tasks=(
            MLPConfig(dataset="digits", hidden=(48, 24), batch_size=64, activation="tanh"),
            CNNConfig(dataset="digits", channels=(12, 12, 12), batch_size=64),
        ),
    ),
    evaluation=lopt.EvaluationConfig(steps=300, seeds=5),
    outer_steps=400,
)
