"""What a comparison comes to: figures over meta-seeds, with standard errors.

A figure of a meta-seed is the mean over the racing seeds of its theta; its standard error is over meta-seeds. Where there is a single
meta-seed, mean and error are over its racing seeds, as they are of the rivals by hand.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from lopt.comparison.races import Entry
from lopt.comparison.state import seconds_of
from lopt.comparison.work import Found
from lopt.config.tree import differences as differing_fields
from lopt.evaluation.summary import Curve, Estimate, Goal, final_losses, target_loss, trailing_mean
from lopt.optimizers.base import OptimizerConfig
from lopt.reporting.plots import over_seeds


@dataclasses.dataclass(frozen=True)
class RivalRow:
    """One line of the table.

    Attributes:
      label: the optimizer.
      final_loss: final training loss over the seeds that did not diverge.
      speedup: the reference's steps to its final loss over the optimizer's in the same racing seed, over the seeds that reach it.
      test: metric -> its estimate, over the seeds that did not diverge.
      raced: racing seeds, of all meta-seeds.
      reached: how many of them reach the reference's final loss.
      diverged: how many of them diverged.
      seeds: meta-seeds; 0 for a rival by hand.
      planned: meta-seeds of the agenda.
      diverged_runs: meta-trainings that were given up as diverged.
      outer_steps: done by each run.
      thetas: of each run, which theta was raced, as in `best, outer step 250`.
      parameters: numbers in theta; 0 for a rival by hand.
      seconds: of all outer steps.
      tuned: the setting of a rival by hand.
      reference: it sets the loss to reach.
    """

    label: str
    final_loss: Estimate
    speedup: Estimate
    test: Mapping[str, Estimate]
    raced: int
    reached: int
    diverged: int
    seeds: int = 0
    planned: int = 0
    diverged_runs: int = 0
    outer_steps: tuple[int, ...] = ()
    thetas: tuple[str, ...] = ()
    parameters: int = 0
    seconds: float = 0.0
    tuned: str = ""
    reference: bool = False

    @property
    def is_learned(self) -> bool:
        return self.seeds > 0


def estimate(groups: Sequence[np.ndarray]) -> Estimate:
    """The mean over meta-seeds of their means over racing seeds; over racing seeds where there is one meta-seed.

    Args:
      groups: one array a meta-seed, [K]; what is not finite is left out.

    Example:
      >>> str(estimate([np.array([1.0, 3.0]), np.array([4.0, np.nan])]))
      '3.0 ± 1.0'
    """
    if len(groups) == 1:
        return Estimate.of(groups[0])
    return Estimate.of(np.array([Estimate.of(group).mean for group in groups]))


def reference_of(found: Found) -> Curve:
    """The race of the rival by hand that sets the loss to reach."""
    return found.tuned[0].curve


def entries_of(found: Found) -> list[Entry]:
    """All runs that were raced, by label and seed."""
    return [entry for entries in found.entries.values() for entry in entries]


def goal(found: Found) -> tuple[float, Goal]:
    """The reference's mean final loss, and what speed-ups are counted by in each racing seed."""
    window = found.agenda.budget.experiment.evaluation.smoothing
    return target_loss(reference_of(found), window), Goal.of(reference_of(found), window)


def rows(found: Found) -> list[RivalRow]:
    """The lines of the table: the learned optimizers that were raced, in the agenda's order, then those by hand."""
    lines = [_learned(found, label, entries) for label, entries in found.entries.items() if entries]
    return [*lines, *(_by_hand(found, index) for index in range(len(found.tuned)))]


def _kept(curve: Curve, values: np.ndarray) -> np.ndarray:
    """A value of each racing seed, [K]; NaN where it diverged."""
    return np.where(curve.diverged, math.nan, values)


def _figures(found: Found, curves: Sequence[Curve]) -> dict[str, object]:
    _, to_reach = goal(found)
    speedups = [to_reach.speedups(curve) for curve in curves]
    return {
        "final_loss": estimate([_kept(curve, final_losses(curve.losses, to_reach.window)) for curve in curves]),
        "speedup": estimate(speedups),
        "test": {name: estimate([_kept(curve, curve.test[name]) for curve in curves]) for name in curves[0].test},
        "raced": sum(len(of_seed) for of_seed in speedups),
        "reached": sum(int(np.isfinite(of_seed).sum()) for of_seed in speedups),
        "diverged": sum(int(curve.diverged.sum()) for curve in curves),
    }


def _learned(found: Found, label: str, entries: Sequence[Entry]) -> RivalRow:
    figures: dict = _figures(found, [entry.curve for entry in entries])
    return RivalRow(
        label=label,
        **figures,
        seeds=len(entries),
        planned=found.agenda.budget.seeds,
        diverged_runs=sum(entry.state.diverged for entry in entries),
        outer_steps=tuple(entry.state.done for entry in entries),
        thetas=tuple(f"{entry.which}, outer step {entry.step:,}" for entry in entries),
        parameters=entries[0].parameters,
        seconds=sum(seconds_of(entry.state.records, entry.inner_steps) for entry in entries),
    )


def _by_hand(found: Found, index: int) -> RivalRow:
    tuned = found.tuned[index]
    setting = tuned.setting + " (at the edge of what was tried)" * tuned.at_edge
    figures: dict = _figures(found, [tuned.curve])
    return RivalRow(label=tuned.curve.name, **figures, tuned=setting, reference=tuned.curve.reference)


@dataclasses.dataclass(frozen=True)
class Difference:
    """Training losses of one learned optimizer less those of another, within racing seeds: these share weights and batches.

    Means and standard errors are over racing seeds, or of the meta-seeds' means over meta-seeds where `seed` is None.

    Attributes:
      label: the optimizer.
      other: what is taken from it.
      seed: the meta-seed of both; None: over all meta-seeds that both have.
      final: difference of the final losses.
      whole: difference of the means over all steps, which is the meta-loss where that is the mean.
      below: racing seeds, or meta-seeds by their means, in which the final loss of the first is below the other's.
    """

    label: str
    other: str
    seed: int | None
    final: Estimate
    whole: Estimate
    below: int


def differences(found: Found) -> list[Difference]:
    """Of all pairs of learned optimizers that differ in nothing but their network, such as UNF and DeepSets under one rule.

    A meta-seed stands by itself, and all of them together where there are several: how much two meta-trainings differ by chance,
    no error over racing seeds tells. A racing seed in which one of the two diverged is left out.
    """
    budget, window = found.agenda.budget, goal(found)[1].window
    raced = {label: {entry.run.seed: entry.curve for entry in entries} for label, entries in found.entries.items() if entries}
    optimizers = {
        rival.label: budget.experiment_of(rival, 0).optimizer for rival in found.agenda.config.rivals if rival.label in raced
    }
    lines: list[Difference] = []
    for other, label in itertools.combinations(optimizers, 2):
        if not _differ_by_network(optimizers[label], optimizers[other]):
            continue
        seeds = sorted(raced[label].keys() & raced[other].keys())
        by_seed = [_less(raced[label][seed], raced[other][seed], window) for seed in seeds]
        lines += [
            Difference(label, other, seed, Estimate.of(final), Estimate.of(whole), int((final < 0).sum()))
            for seed, (final, whole) in zip(seeds, by_seed, strict=True)
        ]
        if len(by_seed) > 1:
            final, whole = (np.array([Estimate.of(values).mean for values in each]) for each in zip(*by_seed, strict=True))
            lines.append(Difference(label, other, None, Estimate.of(final), Estimate.of(whole), int((final < 0).sum())))
    return lines


def _differ_by_network(one: OptimizerConfig, other: OptimizerConfig) -> bool:
    return {path.split(".")[0] for path, *_ in differing_fields(one, other)} == {"network"}


def _less(one: Curve, other: Curve, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Differences of the final losses and of the means over all steps, of each racing seed."""
    final = [_kept(curve, final_losses(curve.losses, window)) for curve in (one, other)]
    whole = [_kept(curve, curve.losses.mean(axis=1, dtype=np.float64)) for curve in (one, other)]
    return final[0] - final[1], whole[0] - whole[1]


def mean_curve(curves: Sequence[Curve], window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training loss over inner steps, `(steps, mean, error)`, as `estimate` has it; averaged over the last `window` steps.

    A value that is not finite is left out of the means.
    """
    smooth = [trailing_mean(curve.losses, window) for curve in curves]
    values = smooth[0] if len(smooth) == 1 else np.stack([over_seeds(losses)[0] for losses in smooth])
    return np.arange(values.shape[1]) + window, *over_seeds(values)


def meta_curves(entries: Sequence[Entry], name: str) -> tuple[np.ndarray, np.ndarray]:
    """A metric over outer steps: `(outer steps [n], values [S, n])`, NaN where a run does not have it."""
    series = [
        {
            record["outer_step"]: float(record[name])
            for record in entry.state.records
            if isinstance(record.get(name), (int, float))
        }
        for entry in entries
    ]
    at = sorted(set().union(*series))
    return np.array(at, int), np.array([[one.get(step, math.nan) for step in at] for one in series], float)
