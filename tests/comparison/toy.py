"""A comparison on a task that costs nothing, and found ones that nothing was trained for."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from lopt.comparison.config import Budget, ComparisonConfig, Published, Rival, make_agenda
from lopt.comparison.races import Entry, Tuned
from lopt.comparison.state import RunState
from lopt.comparison.work import Found
from lopt.estimators.pes import PESConfig
from lopt.evaluation.evaluate import EvaluationConfig
from lopt.evaluation.summary import Curve
from lopt.networks.update import DeepSetsConfig, NFNConfig, UNFConfig
from lopt.optimizers.momentum import LearnedMomentumConfig
from lopt.symmetry.spec import WeightSpec
from lopt.task.base import ArraySplit, Datasets, Task, TaskConfig
from lopt.training.held_out import HeldOutConfig
from lopt.training.outer import OuterConfig
from lopt.training.trainer import MetaTrainConfig
from lopt.unroll import UnrollConfig


@functools.cache
def splits() -> Datasets:
    x = jax.random.normal(jax.random.key(0), (4, 32, 3))
    return Datasets(*[ArraySplit({"x": part}, batch_size=4) for part in x])


@dataclasses.dataclass(frozen=True)
class ToyConfig(TaskConfig):
    """A quadratic with noise."""

    missing: bool = False
    empty: bool = False
    """Beside its weights a leaf without elements."""
    shift: float = 0.0

    def make(self):
        if self.missing:
            raise ValueError("the toy data are not here; look under the bed")

        def loss(params, key, batch):
            return jnp.mean(jnp.sum(jnp.square(params["w"][None] - self.shift - 0.1 * batch["x"]), axis=1))

        more, axes = ({"none": jnp.zeros((0, 3))}, {"none": "nothing! weights!"}) if self.empty else ({}, {})
        return Task(
            name="toy",
            init=lambda key: {"w": 1.0 + 0.1 * jax.random.normal(key, (3,)), **more},
            loss=loss,
            spec=WeightSpec.parse({"w": "weights!", **axes}),
            datasets=splits(),
            initial_loss=3.0,
            metrics=lambda params, key, batch: {"distance": jnp.sqrt(jnp.sum(jnp.square(params["w"])))},
        )


EXPERIMENT = MetaTrainConfig(
    task=ToyConfig(),
    optimizer=LearnedMomentumConfig(alpha=0.03, beta=0.01, network=DeepSetsConfig((3,))),
    estimator=PESConfig(particles=2),
    unroll=UnrollConfig(horizon=8, truncation=4, meta_loss="mean"),
    outer=OuterConfig(learning_rate=0.01),
    evaluation=EvaluationConfig(steps=20, seeds=3, tuning_seeds=1, points_per_decade=1, refinements=0, measurements=2),
    held_out=HeldOutConfig(every=3, steps=20, seeds=2),
    outer_steps=6,
    save_every=2,
)
WILD = dataclasses.replace(EXPERIMENT, optimizer=dataclasses.replace(EXPERIMENT.optimizer, alpha=1e30), max_skipped=2)
MISSING = dataclasses.replace(EXPERIMENT, task=ToyConfig(missing=True))
COMPARISON = ComparisonConfig(
    title="a toy",
    rivals=(Rival("SGDM"), Rival("DeepSets", DeepSetsConfig((3,)))),
    budgets=(
        Budget("tiny", EXPERIMENT, seeds=2, differs=("It is a toy.", "It is small.")),
        Budget("wild", WILD, seeds=1),
        Budget("missing", MISSING, seeds=1),
    ),
    published=(Published("DeepSets", 1.27, 0.36),),
    source="a book",
)


def curve(name: str, rate: float, seeds: int = 3, T: int = 200, reference: bool = False, noise: int = 0) -> Curve:
    """Losses that fall from 2 at a rate, above a noise floor."""
    wobble = np.random.default_rng(noise).uniform(0.95, 1.05, (seeds, T))
    losses = ((0.2 + 1.8 * np.exp(-rate * np.arange(T)))[None] * wobble).astype(np.float32)
    at = np.array([0, T])
    test = {"loss": losses[:, -1], "accuracy": 1.0 - losses[:, -1]}
    return Curve(name, losses, test, 1e-3, reference, at, {"loss": losses[:, [0, -1]]})


def records(outer_steps: int, start: float, every: int = 100, diverged_at: int | None = None) -> tuple[dict, ...]:
    found = []
    for step in range(1, outer_steps + 1):
        bad = diverged_at is not None and step >= diverged_at
        record = {"outer_step": step, "meta_loss": start * (0.5 + np.exp(-step / 500)), "all_diverged": bad, "skipped": 0}
        record |= {"diverged": 2 * bad, "inner_steps_per_s": 1000.0, "gradient_norm": 1.0, "alpha": 0.1, "g0": 0.9}
        if step % every == 0:
            record["held_out/score"] = start * (0.3 + np.exp(-step / 300))
        found.append(record)
    return tuple(found)


EVALUATION = EvaluationConfig(steps=200, seeds=3)
DRAWN = dataclasses.replace(
    COMPARISON,
    rivals=(Rival("SGDM"), Rival("DeepSets", DeepSetsConfig()), Rival("UNF", UNFConfig()), Rival("NFN", NFNConfig())),
    budgets=(
        Budget(
            "cpu",
            dataclasses.replace(EXPERIMENT, evaluation=EVALUATION, outer_steps=1000),
            seeds=3,
            differs=tuple(f"Difference number {n} is told in a sentence of some length, as real ones are." for n in range(8)),
        ),
    ),
)


def found(counts: dict[str, int], **changes) -> Found:
    """A comparison of which so many runs of each label are done.

    Args:
      counts: label -> runs.
      changes: label -> function of (seed, entry) to another entry.
    """
    agenda = make_agenda("toy", DRAWN, "cpu", "nowhere")
    entries: dict[str, tuple[Entry, ...]] = {}
    for index, rival in enumerate(DRAWN.rivals):
        of_label = []
        for run in [run for run in agenda.runs if run.label == rival.label][: counts.get(rival.label, 0)]:
            race = curve(rival.label, 0.02 + 0.01 * index + 0.002 * run.seed, noise=10 * index + run.seed)
            start = {"time": "2026-01-01", "device": "cpu", "devices": 2, "packages": {"jax": "0.10.2"}}
            state = RunState(1000, records(1000, 1.0 + 0.1 * index + 0.02 * run.seed), False, (start,))
            theta = {"alpha": jnp.float32(0.1), "g0": jnp.float32(0.9)}
            entry = Entry(run, state, race, 900, "best", 16, theta)
            of_label.append(changes[rival.label](run.seed, entry) if rival.label in changes else entry)
        entries[rival.label] = tuple(of_label)
    tuned = (
        Tuned(curve("tuned Adam", 0.03, reference=True, noise=90), "0.01"),
        Tuned(curve("tuned SGDM", 0.02, noise=91), "0.1"),
    )
    return Found(agenda, entries, tuned)
