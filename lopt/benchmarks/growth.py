"""How a cost grows along an axis: the slope on logarithmic axes, 1 where growth is linear."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

TOLERANCE = 0.2  # a doubling that costs 1.74 to 2.30 times as much counts as linear
_STAMP = ("commit", "device", "devices", "native", "jax", "python", "date")  # of `lopt.runtime.environment.stamp`
# Of the scaling benchmark: values by default, for a quick look, and besides where minutes and gigabytes each are at hand.
AXIS_VALUES: dict[str, tuple[list[int], list[int], list[int]]] = {
    "weights": ([1_000, 10_000, 100_000, 1_000_000], [1_000, 3_000], [10_000_000]),
    "particles": ([2, 4, 16, 64, 256], [2, 4], []),
    "tensors": ([4, 12, 40, 120], [4, 6], [400]),
    "truncation": ([5, 10, 20, 50, 100], [2, 4], []),
    "devices": ([1, 2], [1, 2], []),
}


def growth(values: Sequence[float], costs: Sequence[float]) -> dict[str, Any]:
    """Fit cost = c value^slope by least squares of logarithms.

    Args:
      values: along the axis, positive and increasing, at least 2.
      costs: positive, as many.

    Returns:
      `slope` over all values; `local_slopes` between neighbours; `linear`: the longest range of values, as [from, to], within which
      every local slope is within 0.2 of 1, None if there is none.

    Raises:
      ValueError: if there are fewer than two values, they do not increase, or something is not positive.

    Example:
      >>> growth([1, 10, 100], [5, 5, 50])
      {'slope': 0.5, 'local_slopes': [0.0, 1.0], 'linear': [10, 100]}
    """
    if len(values) < 2 or len(values) != len(costs) or min(*values, *costs) <= 0 or sorted(set(values)) != list(values):
        raise ValueError(f"growth needs two or more increasing positive values and as many costs, got {values} and {costs}")
    x, y = np.log(np.asarray(values, np.float64)), np.log(np.asarray(costs, np.float64))
    slope = float(np.polyfit(x, y, 1)[0])
    local = np.diff(y) / np.diff(x)
    best: list[float] | None = None
    start = None
    for index, fits in enumerate([*(np.abs(local - 1) <= TOLERANCE), False]):
        if fits and start is None:
            start = index
        if not fits and start is not None:
            if best is None or values[index] / values[start] > best[1] / best[0]:
                best = [values[start], values[index]]
            start = None
    return {"slope": round(slope, 2), "local_slopes": [round(float(s), 2) for s in local], "linear": best}


def growth_along_axis(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A record of how time and planned memory grow over the records of one axis of the scaling benchmark."""
    values, last = [record["value"] for record in records], records[-1]
    fits = {f"{cost}_growth": growth(values, [record[cost] for record in records]) for cost in ("outer_step_s", "program_mb")}
    said = {name: last[name] for name in ("benchmark", "axis", "network")}
    return {**said, "values": values, **fits, **{name: last[name] for name in _STAMP}}
