"""How the outer step grows: with weights, particles, tensors, the truncation and devices."""

import dataclasses
import time
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lopt.benchmarks.in_use import optimizer_called
from lopt.benchmarks.machine import peak_megabytes, planned_memory
from lopt.benchmarks.synthetic import SyntheticMLPConfig, hidden_width
from lopt.estimators.pes import PESConfig
from lopt.runtime.distributed import use_all_cores
from lopt.training.mixture import set_up
from lopt.training.outer import make_outer_step
from lopt.training.trainer import MetaTrainConfig, initial_state, on_devices
from lopt.unroll import UnrollConfig

Axis = Literal["weights", "particles", "tensors", "truncation", "devices"]
SECONDS = 2.0  # of timed outer steps


@dataclasses.dataclass(frozen=True)
class Point:
    """What an outer step is of: by default the paper's MLP with a shorter truncation."""

    network: str = "unf"
    """The optimizer: a key of `lopt.benchmarks.in_use.NETWORKS` or of its `RULES`."""
    weights: int = 2_410
    tensors: int = 4
    particles: int = 16
    truncation: int = 10
    devices: int | None = None
    """None: one for each core."""

    def task(self) -> SyntheticMLPConfig:
        """A perceptron with kernel and bias in each layer, its hidden layers as wide as the number of weights asks for."""
        layers = self.tensors // 2
        return SyntheticMLPConfig(hidden=(hidden_width(self.weights, layers),) * (layers - 1))


# What stays as it is while an axis grows. Weights and tensors are measured with one pair a core, as long as memory lasts; the tensors
# share a constant number of weights, so that what is seen is the price of a tensor.
BASES: dict[str, Point] = {
    "weights": Point(tensors=6, particles=2, truncation=2),
    "particles": Point(),
    "tensors": Point(weights=14_400, particles=2, truncation=2),
    "truncation": Point(),
    "devices": Point(),
}


def point_on(axis: Axis, value: int, network: str) -> Point:
    """The point of an axis.

    Raises:
      ValueError: if there is none, as for an odd number of tensors.
    """
    if axis == "tensors" and (value < 4 or value % 2):
        raise ValueError(f"a perceptron has an even number of tensors, at least 4, got {value}")
    replaced: Any = {axis: value}
    return dataclasses.replace(BASES[axis], network=network, **replaced)


def scaling(axis: Axis, value: int, network: str, min_steps: int = 3) -> dict[str, Any]:
    """Time outer steps of a point of an axis, in a process that has not used JAX yet.

    Args:
      axis: which grows.
      value: along it.
      network: the optimizer's, as in `Point`.
      min_steps: outer steps that are timed at least; more while 2 seconds have not passed.

    Returns:
      `axis`, `value`, `network`; `weights`, `tensors`, `parameters` (of theta), `particles`, `truncation`, `mesh` (devices that
      particles were spread over); `outer_step_s` (median), `inner_step_us`, `inner_steps_per_s`, `compile_s`; `program_mb` (what
      XLA plans for a device: state, data and temporary buffers) and `peak_mb` (of this process).
    """
    point = point_on(axis, value, network)
    use_all_cores(point.devices)
    unroll = UnrollConfig(horizon=20 * point.truncation, truncation=point.truncation)
    estimator = PESConfig(particles=point.particles)
    experiment = MetaTrainConfig(point.task(), optimizer_called(network), estimator, unroll)
    setup = set_up(experiment.task, experiment.optimizer, experiment.estimator, experiment.unroll)
    state = initial_state(experiment, setup)
    datasets = on_devices(setup.source, NamedSharding(setup.mesh, PartitionSpec()))(0)
    start = time.perf_counter()
    outer_step = make_outer_step(experiment.seed, setup.estimator, experiment.outer, setup.optimizer)
    compiled = outer_step.lower(np.int32(0), datasets, state).compile()
    compile_s = time.perf_counter() - start
    _, program_bytes = planned_memory(compiled)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.theta))
    state, _ = jax.block_until_ready(compiled(np.int32(0), datasets, state))
    seconds: list[float] = []
    while len(seconds) < min_steps or (min_steps > 1 and sum(seconds) < SECONDS):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(np.int32(len(seconds) + 1), datasets, state))
        seconds.append(time.perf_counter() - start)
    median = float(np.median(seconds))
    (problem,) = setup.problems.values()
    shapes = jax.tree.leaves(problem.param_shapes())
    return {
        "axis": axis,
        "value": value,
        "network": network,
        "weights": sum(leaf.size for leaf in shapes),
        "tensors": len(shapes),
        "parameters": parameters,
        "particles": point.particles,
        "truncation": point.truncation,
        "mesh": setup.mesh.size,
        "outer_step_s": round(median, 6),
        "inner_step_us": round(1e6 * median / setup.estimator.inner_steps, 2),
        "inner_steps_per_s": round(setup.estimator.inner_steps / median, 1),
        "compile_s": round(compile_s, 2),
        "program_mb": round(program_bytes / 1e6, 3),
        "peak_mb": round(peak_megabytes(), 1),
    }
