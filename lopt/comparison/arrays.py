"""A comparison as arrays, small enough to be kept beside a report: races as means over racing seeds, meta-trainings thinned out."""

import io
import math
from collections.abc import Mapping

import numpy as np

from lopt.comparison.results import entries_of, goal
from lopt.comparison.work import Found
from lopt.evaluation.summary import final_losses
from lopt.reporting.plots import over_seeds

_EVERY, _MOST = 50, 200  # metrics of every 50th outer step, of fewer where a run would have more than 200 of them
_METRICS = ("meta_loss", "final_loss", "gradient_norm", "alpha", "beta", "g0", "diverged", "inner_steps_per_s")


def curve_arrays(found: Found) -> dict[str, np.ndarray]:
    """What curves.npz holds: of every optimizer, S meta-seeds (1 for a rival by hand), K racing seeds, T steps, M measurements.

    `NAME/mean` and `NAME/error` [S, T]: training loss over racing seeds and its standard error; `NAME/final_loss`,
    `NAME/steps_to_target`, to the reference's final loss in the same racing seed, and `NAME/test/METRIC` [S, K];
    `NAME/held_out/METRIC` [S, M], means over racing seeds, at the steps `at` [M]; `NAME/seeds` [S]. `target`: the mean of the
    reference's final losses.
    """
    target, to_reach = goal(found)
    window = to_reach.window
    groups = {label: [entry.curve for entry in entries] for label, entries in found.entries.items() if entries}
    seeds = {label: [entry.run.seed for entry in entries] for label, entries in found.entries.items()}
    groups |= {tuned.curve.name: [tuned.curve] for tuned in found.tuned}
    arrays: dict[str, np.ndarray] = {"target": np.array(target), "window": np.array(window), "at": found.tuned[0].curve.at}
    for name, curves in groups.items():
        means = [over_seeds(curve.losses) for curve in curves]
        arrays |= {
            f"{name}/seeds": np.array(seeds.get(name, [0])),
            f"{name}/mean": np.stack([mean for mean, _ in means]).astype(np.float32),
            f"{name}/error": np.stack([error for _, error in means]).astype(np.float32),
            f"{name}/final_loss": np.stack([final_losses(curve.losses, window) for curve in curves]),
            f"{name}/steps_to_target": np.stack([to_reach.steps_of(curve) for curve in curves]),
        }
        for metric in curves[0].test:
            arrays[f"{name}/test/{metric}"] = np.stack([curve.test[metric] for curve in curves])
        for metric in curves[0].held_out:
            held_out = [over_seeds(curve.held_out[metric])[0].astype(np.float32) for curve in curves]
            arrays[f"{name}/held_out/{metric}"] = np.stack(held_out)
    return arrays


def metric_arrays(found: Found) -> dict[str, np.ndarray]:
    """What metrics.npz holds of every run: `LABEL-SEED/METRIC` of every 50th outer step, or fewer, and all held-out evaluations.

    `outer_step` [n] belongs to the metrics; `held_out/outer_step` and `held_out/score` [m] to each other.
    """
    arrays = {}
    for entry in entries_of(found):
        every = max(_EVERY, math.ceil(entry.state.done / _MOST))
        name = f"{entry.run.label}-{entry.run.seed}"
        kept = [record for record in entry.state.records if record["outer_step"] % every == 0] or list(entry.state.records[-1:])
        arrays[f"{name}/outer_step"] = np.array([record["outer_step"] for record in kept], np.int32)
        for metric in _METRICS:
            if any(metric in record for record in kept):
                arrays[f"{name}/{metric}"] = np.array([record.get(metric, math.nan) for record in kept], np.float32)
        scored = [record for record in entry.state.records if "held_out/score" in record]
        if scored:
            arrays[f"{name}/held_out/outer_step"] = np.array([record["outer_step"] for record in scored], np.int32)
            arrays[f"{name}/held_out/score"] = np.array([record["held_out/score"] for record in scored], np.float32)
    return arrays


def npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The bytes of an .npz file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()
