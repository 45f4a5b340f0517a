"""UNF's own terms, meta-trained alone beside the pointwise map of a DeepSets that was meta-trained before: the MLP of the paper's figure.

Command:  python scripts/meta_train.py --config configs/terms_mlp.py --run-dir runs/terms/mlp/UNF-0
          for the DeepSets going on with --optimizer.network deep_sets --estimator.sigma 0.003 --estimator.sigmas --outer.learning-rate 3e-4
Cost:     4.3 million inner steps: 10 to 19 minutes on 2 shared cores
Expect:   final training loss .3879 (DeepSets that goes on .3921) with seed 0, .3980 (.4034) with seed 1

What is not a term is neither perturbed nor moved: sigma 0. Then no noise hides what the terms are worth (docs/research/terms_alone.md).
"""

import dataclasses
from collections.abc import Sequence

from configs.paper.mlp_rules import beginning_small, cpu
from lopt.estimators.nres import NRESConfig
from lopt.networks.update import UNFConfig
from lopt.training.trainer import MetaTrainConfig


def terms_alone(
    experiment: MetaTrainConfig, hidden: tuple[int, ...], rest: Sequence[str], outer_steps: int, rate: float, init_from: str
) -> MetaTrainConfig:
    """An experiment that goes on from a DeepSets with the terms of a UNF of its widths; `rest` names all other parts of theta."""
    return dataclasses.replace(
        experiment,
        optimizer=dataclasses.replace(experiment.optimizer, network=UNFConfig(hidden)),
        estimator=NRESConfig(particles=16, sigmas=(*((part, 0.0) for part in rest), ("network/last/terms", 0.03))),
        outer=dataclasses.replace(experiment.outer, learning_rate=rate, decay_steps=outer_steps),
        held_out=dataclasses.replace(experiment.held_out, every=50, seeds=8),
        outer_steps=outer_steps,
        init_from=init_from,
    )


def from_the_report(experiment: MetaTrainConfig, task: str, outer_steps: int, rate: float) -> MetaTrainConfig:
    """The budget `start` of an experiment of Figure 2 that goes on with UNF's terms from the DeepSets of its report."""
    there = f"docs/reproduction/{task}_rules-start/theta/DeepSets-{{seed}}"
    return terms_alone(beginning_small(experiment), (32, 32, 32), ("alpha", "beta", "g0", "network"), outer_steps, rate, there)


config = from_the_report(cpu, "mlp", outer_steps=2700, rate=1e-3)
