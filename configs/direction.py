"""A learned direction for any network: meta-trained on small tasks of six kinds, at log-uniform rates, lengths and batch sizes.

Command:  python scripts/meta_train.py --config configs/direction.py --run-dir runs/direction
Cost:     96 million inner steps; not run yet. Adam's take from .06 to .14 ms of a core each on the MLPs, the autoencoder and the CNN
Expect:   not run to the end here yet; `python scripts/evaluate_suite.py --optimizer nadamw muon runs/direction` says what it is worth

After Celo2 (arXiv 2602.19142). Weights are reparametrised globally by a factor c from .001 to 1000, always: as directions are normalised
and features too, that is a training at c times the rate, so that no rate is the one that theta relies on. The user gives the rate. Lengths
are log-uniform from 100 to 2,000 steps. FashionMNIST must be at hand: the error that says so lists the ways to get it.
"""

from lopt.estimators.nres import NRESConfig
from lopt.evaluation.evaluate import EvaluationConfig
from lopt.features.presets import Celo2Features
from lopt.networks.update import DeepSetsConfig
from lopt.optimizers.config import LearnedOptimizerConfig
from lopt.optimizers.direction import DirectionRule
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
from tasks.transformer import TransformerConfig


def varied(task: TaskConfig, *batch_sizes: int) -> FamilyConfig:
    """Every inner training at a scale of the weights and a batch size of its own."""
    return FamilyConfig(task, reparametrize=True, levels=("global",), scales=((0.001, 1000.0),), batch_sizes=batch_sizes)


config = MetaTrainConfig(
    task=MixtureConfig(
        tasks=(
            varied(MLPConfig(dataset="fashion_mnist", hidden=(32,)), 16, 32, 64, 128),
            varied(MLPConfig(dataset="fashion_mnist", hidden=(24, 16), activation="tanh", batch_size=64), 16, 32, 64),
            varied(MLPConfig(dataset="digits", hidden=(32,), batch_size=64), 16, 32, 64),
            varied(MLPConfig(dataset="digits", hidden=(16, 16, 16), activation="gelu", batch_size=64), 16, 32, 64),
            varied(AutoencoderConfig(dataset="fashion_mnist", hidden=(24,), latent=8, batch_size=64), 16, 32, 64),
            varied(CNNConfig(dataset="fashion_mnist", channels=(4, 8), batch_size=32), 8, 16, 32),
            varied(RNNConfig(dataset="python_docs", length=8, embedding=16, hidden=(32,), batch_size=16), 4, 8, 16),
            varied(
                TransformerConfig(dataset="python_docs", blocks=1, width=16, heads=2, head_width=8, mlp=32, batch_size=4), 2, 4
            ),
        ),
        weights=(2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0),
    ),
    optimizer=LearnedOptimizerConfig(
        rule=DirectionRule(over="matrix", orthogonalize=True), features=Celo2Features(), network=DeepSetsConfig((8, 8))
    ),
    estimator=NRESConfig(particles=4),
    unroll=UnrollConfig(horizon=2000, truncation=50, meta_loss="mean", horizons="log_uniform", min_horizon=100),
    outer=OuterConfig(learning_rate=1e-3, warmup_steps=20, decay_steps=30_000, average=0.99),
    held_out=HeldOutConfig(
        every=1000,
        steps=500,
        seeds=2,
        tasks=(
            MLPConfig(dataset="fashion_mnist", image_size=14, hidden=(64, 64, 64)),
            CNNConfig(dataset="digits", channels=(8, 8), batch_size=64),
        ),
    ),
    evaluation=EvaluationConfig(steps=1000, seeds=5, baselines=("nadamw", "muon"), schedules=("warmup_cosine",)),
    outer_steps=30_000,
)
