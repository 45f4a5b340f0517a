"""Inner steps a second of the real outer step, against what the machine's matrix products allow."""

import dataclasses
import itertools
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import NamedSharding, PartitionSpec

from lopt.benchmarks.in_use import NETWORKS, optimizer_called
from lopt.benchmarks.machine import peak_megabytes
from lopt.benchmarks.profile import shares
from lopt.config.serialize import from_dict
from lopt.features.presets import NUM_CHANNELS
from lopt.layers.kernels import ffi as native
from lopt.networks.update import NetworkConfig
from lopt.optimizers.config import LearnedOptimizerConfig
from lopt.optimizers.momentum import LearnedSGDMConfig, OptimizerConfig
from lopt.task.base import Problem
from lopt.training.mixture import set_up
from lopt.training.outer import make_outer_step
from lopt.training.trainer import MetaTrainConfig, initial_state, on_devices

MATMUL_SIZE = 2048


def throughput(
    experiment: MetaTrainConfig, steps: int = 20, *, profile: bool = False, beside: Sequence[str] = ()
) -> dict[str, Any]:
    """Time outer steps of an experiment after compilation; a large matrix product is timed between them, as the machine's limit.

    Args:
      experiment: what would be trained; nothing is written.
      steps: outer steps that are timed, after two that are not.
      profile: also divide an outer step into its parts; on CPU `lopt.benchmarks.profile.record_operations` must have been called.
      beside: what else is timed, an outer step of each in turns, so that a busy machine is so for all: `xla`, the same without kernels in
        C++, and `sgdm`, the learned SGDM.

    Returns:
      `inner_steps_per_s` (median) with its range, `outer_steps_per_s`, `compile_s`, `peak_mb` (of this process so far),
      `matmul_gflops` (median of float32 products of 2048 x 2048 matrices), `mflop` an inner step (see `flop_per_inner_step`), and
      `utilisation`, the rate of inner steps in FLOP/s over that of the products; `over_xla` and `over_sgdm`, the rate over that of
      what is timed beside it (median over turns), with its middle half as `..._range`;
      with `profile` what `lopt.benchmarks.profile.shares` gives.
    """
    program = _Program(experiment)
    others = {}
    for name in beside:
        with native.without() if name == "xla" else nullcontext():
            others[name] = _Program(with_network(experiment, "sgdm") if name == "sgdm" else experiment)
    product = _Product()
    times: dict[str, list[float]] = {name: [] for name in ("", *others)}
    for _ in range(steps + 2):
        for name, each in {"": program, **others}.items():
            times[name].append(each.time())
        product.time()
    found = {name: np.asarray(each[2:]) for name, each in times.items()}
    seconds, setup = found.pop(""), program.setup
    rates = setup.estimator.inner_steps / seconds
    compared = {}
    for name, each in found.items():
        ratios = each / others[name].setup.estimator.inner_steps * rates
        compared[f"over_{name}"] = round(float(np.median(ratios)), 3)
        compared[f"over_{name}_range"] = [round(float(x), 3) for x in np.quantile(ratios, (0.25, 0.75))]
    flop = float(np.mean([flop_per_inner_step(problem, experiment.optimizer) for problem in setup.problems.values()]))
    gflops = product.gflops()
    divided = {}
    if profile:
        divided = shares(program.outer_step, program.time)
    return {
        "task": "+".join(setup.problems),
        "network": network_name(experiment.optimizer),
        "particles": experiment.estimator.particles,
        "inner_steps_per_s": round(float(np.median(rates))),
        "inner_steps_per_s_range": [round(float(np.min(rates))), round(float(np.max(rates)))],
        "outer_steps_per_s": round(float(np.median(1 / seconds)), 3),
        "compile_s": round(program.compile_s, 2),
        "peak_mb": round(peak_megabytes(), 1),
        "matmul_gflops": round(gflops, 1),
        "mflop": round(flop / 1e6, 2),
        "utilisation": round(float(np.median(rates)) * flop / (gflops * 1e9), 3),
        **compared,
        **divided,
    }


class _Program:
    """The compiled outer step of an experiment, and the state that it changes."""

    def __init__(self, experiment: MetaTrainConfig) -> None:
        self.setup = set_up(experiment.task, experiment.optimizer, experiment.estimator, experiment.unroll)
        self._state = initial_state(experiment, self.setup)
        self._data, self._step = on_devices(self.setup.source, NamedSharding(self.setup.mesh, PartitionSpec())), 0
        self._datasets = self._data(0)
        start = time.perf_counter()
        step = make_outer_step(experiment.seed, self.setup.estimator, experiment.outer, self.setup.optimizer)
        self.outer_step = step.lower(np.int32(0), self._datasets, self._state).compile()
        self.compile_s = time.perf_counter() - start

    def time(self) -> float:
        """Seconds of the next outer step."""
        start = time.perf_counter()
        self._state, info = self.outer_step(np.int32(self._step), self._datasets, self._state)
        self._step += 1
        self._datasets = self._data(self._step)
        jax.block_until_ready(info)
        return time.perf_counter() - start


def with_network(experiment: MetaTrainConfig, name: str) -> MetaTrainConfig:
    """An experiment with another update network: of `lopt.benchmarks.in_use.NETWORKS`, `sgdm` (none), or `config`, its own."""
    if name == "config":
        return experiment
    if name == "sgdm":
        return dataclasses.replace(experiment, optimizer=LearnedSGDMConfig())
    return dataclasses.replace(experiment, optimizer=optimizer_called(name))


def with_rule(
    experiment: MetaTrainConfig, rule: str, features: str, network: str, hidden: Sequence[int] | None
) -> MetaTrainConfig:
    """An experiment with another learned optimizer.

    Args:
      experiment: its task and estimator stay.
      rule: by its name in files, as `direction`.
      features: by theirs, as `celo2`.
      network: of `lopt.benchmarks.in_use.NETWORKS`; `config`: DeepSets.
      hidden: widths of its pointwise layers; None: its own.
    """
    f = NETWORKS["deep_sets" if network == "config" else network]
    if hidden is not None:
        f = dataclasses.replace(f, hidden=tuple(hidden))
    optimizer = LearnedOptimizerConfig(from_dict({"class": rule}), from_dict({"class": features}), f)
    return dataclasses.replace(experiment, optimizer=optimizer)


@contextmanager
def stand_in(experiment: MetaTrainConfig, data: str | None) -> Iterator[MetaTrainConfig]:
    """An experiment on another data set: `random` is noise of the shapes that its task has, coloured images or bytes of text.

    Raises:
      ValueError: if its task has no data set to replace.
    """
    if data is None:
        yield experiment
        return
    fields = {field.name for field in dataclasses.fields(experiment.task)}
    if "dataset" not in fields:
        raise ValueError(f"{type(experiment.task).__name__} has no data set that --data could replace")
    with tempfile.TemporaryDirectory() as directory:
        found: dict[str, Any] = {"dataset": data}
        if data == "random":
            rng = np.random.default_rng(0)
            if "image_size" in fields:
                file, size = Path(directory) / "random.npz", experiment.task.image_size  # pyright: ignore[reportAttributeAccessIssue]
                images = rng.integers(0, 256, (5000, size, size, 3), np.uint8)
                np.savez(file, images=images, labels=np.arange(5000) % 10)
            else:
                file = Path(directory) / "random.txt"
                file.write_bytes(rng.integers(32, 127, 500_000, np.uint8).tobytes())
                found["tokenizer"] = "bytes"
            found["dataset"] = str(file)
        yield dataclasses.replace(experiment, task=dataclasses.replace(experiment.task, **found))


class _Product:
    """A large matrix product, timed now and then."""

    def __init__(self) -> None:
        matrix = jnp.ones((MATMUL_SIZE, MATMUL_SIZE), jnp.float32)
        self._matrix, self._product = matrix, jax.jit(jnp.matmul).lower(matrix, matrix).compile()
        self._seconds: list[float] = []
        jax.block_until_ready(self._product(matrix, matrix))

    def time(self) -> None:
        start = time.perf_counter()
        jax.block_until_ready(self._product(self._matrix, self._matrix))
        self._seconds.append(time.perf_counter() - start)

    def gflops(self) -> float:
        return 2 * MATMUL_SIZE**3 / float(np.median(self._seconds)) / 1e9


def network_name(optimizer: OptimizerConfig) -> str:
    """A short name of a learned optimizer's update network; its optimizer's where it has none."""
    network = getattr(optimizer, "network", None)
    name = type(optimizer if network is None else network).__name__.removesuffix("Config")
    shared = getattr(network, "share", "none") == "role"
    return f"{name} shared by role" if shared else name


def flop_per_inner_step(problem: Problem, optimizer: OptimizerConfig) -> float:
    """Floating-point operations of an inner step by its layer sizes: a measure of the work, however it is done.

    The task's gradient counts as three times the products of its loss. f counts as its dense layers at every weight, 19 channels in
    and one out for the paper's; pooling, features and what belongs to a tensor as a whole are left out. For the paper's MLP recipe
    14.8 MFLOP.

    Args:
      problem: the task.
      optimizer: the learned optimizer; without an update network only the task counts.
    """
    task, params = problem.example, problem.param_shapes()
    state = jax.eval_shape(task.init_with_state, jax.random.key(0))[1]
    batch = jax.eval_shape(lambda key: task.datasets.at(0).train.batch(key), jax.random.key(0))
    loss = jax.make_jaxpr(lambda p, s, k, b: task.loss_with_state(p, s, k, b)[0])(params, state, jax.random.key(0), batch)
    total = 3 * _products(loss.jaxpr)
    network: NetworkConfig | None = getattr(optimizer, "network", None)
    if network is not None:
        inputs, outputs = NUM_CHANNELS, 1
        if isinstance(optimizer, LearnedOptimizerConfig) and optimizer.features is not None:
            inputs, outputs = optimizer.features.make().num_channels, optimizer.rule.outputs
        widths = (inputs, *network.hidden, *getattr(network, "equivariant", ()), outputs)
        dense = 2 * sum(a * b for a, b in itertools.pairwise(widths))
        total += dense * sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
    return float(total)


def _products(jaxpr: Jaxpr) -> int:
    """Multiplications and additions in the matrix products of a program, those of a loop as often as it runs them."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left, out = _shape(equation.invars[0]), _shape(equation.outvars[0])
            total += 2 * int(np.prod(out)) * int(np.prod([left[axis] for axis in contracted]))
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += times * sum(_products(inner) for inner in _inner_programs(equation.params))
    return total


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _inner_programs(params: Mapping[str, Any]) -> list[Jaxpr]:
    values = [v for value in params.values() for v in (value if isinstance(value, tuple | list) else [value])]
    return [v.jaxpr if isinstance(v, ClosedJaxpr) else v for v in values if isinstance(v, ClosedJaxpr | Jaxpr)]
