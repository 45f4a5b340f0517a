"""A learned direction for any network: Shampoo's step corrected, meta-trained on small perceptrons and an autoencoder at any rate.

Command:  python scripts/meta_train.py --config configs/direction.py --run-dir runs/direction
Cost:     1.9 million inner steps: 8 minutes on 2 older cores; the theta that is best by its held-out score is of outer step 200
Expect:   docs/research/direction.md has what came of it; it is shipped as lopt-direction, the UNF of direction_unf.py as
          lopt-direction-unf, both with less of what was learned: docs/research/shrinking.md

After Celo2 (arXiv 2602.19142), with a nominal step, and of Muon's size. The rate is the user's: weights are reparametrised globally by a
factor c from .03 to 30, which for normalised directions and features is a training at c times the rate, so that no rate is the one that
theta relies on. It rises and falls during meta-training as in use. Lengths are log-uniform from 100 to 2,000 steps. The meta-loss is of
the last half of each training: the mean over all of it asks for speed, and after 200 outer steps the end pays for it. Why Shampoo's step:
docs/research/shampoo.md. FashionMNIST must be at hand: the error that says so lists the ways to get it.
"""

from lopt.estimators.nres import NRESConfig
from lopt.evaluation.evaluate import EvaluationConfig
from lopt.features.presets import Celo2Features
from lopt.networks.update import DeepSetsConfig
from lopt.optimizers.config import LearnedOptimizerConfig
from lopt.optimizers.direction import DirectionRule
from lopt.optimizers.nominals import ShampooNominal
from lopt.task.base import TaskConfig
from lopt.task.families import FamilyConfig, MixtureConfig
from lopt.training.held_out import HeldOutConfig
from lopt.training.outer import OuterConfig
from lopt.training.trainer import MetaTrainConfig
from lopt.unroll import UnrollConfig
from tasks.autoencoder import AutoencoderConfig
from tasks.cnn import CNNConfig
from tasks.mlp import MLPConfig
from tasks.rnn import RNNConfig


def varied(task: TaskConfig, *batch_sizes: int) -> FamilyConfig:
    """Every inner training at a scale of the weights and a batch size of its own."""
    return FamilyConfig(task, reparametrize=True, levels=("global",), scales=((0.03, 30.0),), batch_sizes=batch_sizes)


PERCEPTRONS = (
    varied(MLPConfig(dataset="fashion_mnist", hidden=(32,)), 32, 64, 128),
    varied(MLPConfig(dataset="fashion_mnist", hidden=(24, 16), activation="tanh", batch_size=64), 16, 32, 64),
    varied(MLPConfig(dataset="digits", hidden=(16, 16, 16), activation="gelu", batch_size=64), 16, 32, 64),
    varied(AutoencoderConfig(dataset="fashion_mnist", hidden=(24,), latent=8, batch_size=64), 16, 32, 64),
)

config = MetaTrainConfig(
    task=MixtureConfig(tasks=PERCEPTRONS),
    optimizer=LearnedOptimizerConfig(
        rule=DirectionRule(
            nominal=ShampooNominal(every=4, lengthen=1000.0),
            gated=True,
            over="matrix",
            scale="inputs",
            vectors=0.3,
            learning_rate=0.03,
            rate_schedule="warmup_cosine",
        ),
        features=Celo2Features(),
        network=DeepSetsConfig((8, 8)),
    ),
    estimator=NRESConfig(particles=8),
    unroll=UnrollConfig(horizon=2000, truncation=50, meta_loss="last", last_part=0.5, horizons="log_uniform", min_horizon=100),
    outer=OuterConfig(learning_rate=1e-3, warmup_steps=20, decay_steps=600, average=0.98),
    held_out=HeldOutConfig(
        every=100,
        steps=500,
        seeds=2,
        multiples=(0.3, 0.55, 1.0, 1.8, 3.0),
        tasks=(
            MLPConfig(dataset="fashion_mnist", image_size=14, hidden=(64, 64, 64)),
            CNNConfig(dataset="fashion_mnist", channels=(12, 12), batch_size=64),
            RNNConfig(length=16, hidden=(48,), activation="tanh", batch_size=16),
        ),
    ),
    evaluation=EvaluationConfig(steps=1000, seeds=5, baselines=("nadamw", "muon"), schedules=("warmup_cosine",)),
    outer_steps=600,
)
