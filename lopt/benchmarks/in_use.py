"""What a learned optimizer costs its user: time and memory of a step, beside those of optax.adam."""

import functools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lopt.benchmarks.machine import peak_megabytes, planned_memory
from lopt.benchmarks.synthetic import hidden_width, perceptron
from lopt.networks.update import DeepSetsConfig, NetworkConfig, UNFConfig
from lopt.optimizers.momentum import LearnedMomentumConfig
from lopt.symmetry.spec import WeightSpec

PyTree = Any
ADAM = "adam"
NETWORKS: dict[str, NetworkConfig] = {
    "unf": UNFConfig(terms=None),  # the published one, 32-32-32
    "unf_bfloat16": UNFConfig(matmul_dtype="bfloat16", terms=None),
    "unf_role": UNFConfig(share="role", terms=None),
    "deep_sets": DeepSetsConfig(),
}
_LAYERS = 4
_LOOPED_NUMBERS = 2_000_000  # gradients that are held for the steps of one call, at most
_LOOPED_STEPS = 20
_TURN = 0.05  # seconds


def in_use(weights: int, names: Sequence[str], repeats: int = 20) -> Iterator[dict[str, Any]]:
    """Steps of optimizers alone, gradients given: `update` and `apply_updates` in one compiled program, state and params donated.

    The model is a perceptron of four layers. All optimizers are timed in turns, so that a machine that is busy for a while is so for
    all; a turn of a fast one is several calls, so that what the one before has left in the caches does not count. Where the model is
    small, one call is a loop of up to 20 steps with a gradient of its own each: a call costs tens of microseconds, which in a
    training loop are shared with the model's own step.

    Args:
      weights: of the model, about.
      names: of update networks, keys of `NETWORKS`.
      repeats: turns of each, of which the median is taken.

    Yields:
      One record an optimizer, Adam's first: `optimizer`, `weights`, `tensors`, `step_us` (median) and `step_us_range` (middle
      half), `ns_per_weight`, `ratio` (to Adam: median over repeats); bytes a weight: `state_bytes`, `temp_bytes` (temporary buffers
      of the compiled step, as XLA plans them) and `peak_bytes` (those with params, gradients and state); `compile_s`, and `peak_mb`
      of this process, all optimizers together.
    """
    init, spec = perceptron((hidden_width(weights, _LAYERS),) * (_LAYERS - 1))
    params = init(jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    steps = max(1, min(_LOOPED_STEPS, _LOOPED_NUMBERS // count))
    gradients = _gradients(params, steps)
    transforms = {ADAM: optax.adam(1e-3), **{name: _transform(NETWORKS[name], spec, params) for name in names}}
    programs = {name: _Program(transform, params, gradients) for name, transform in transforms.items()}
    seconds: Mapping[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            seconds[name].append(program.turn() / steps)
    base = np.asarray(seconds[ADAM])
    for name, program in programs.items():
        found = np.asarray(seconds[name])
        low, high = np.quantile(found, (0.25, 0.75))
        yield {
            "optimizer": name,
            "weights": count,
            "tensors": len(jax.tree.leaves(params)),
            "step_us": round(1e6 * float(np.median(found)), 2),
            "step_us_range": [round(1e6 * float(low), 2), round(1e6 * float(high), 2)],
            "ns_per_weight": round(1e9 * float(np.median(found)) / count, 3),
            "ratio": round(float(np.median(found / base)), 2),
            "state_bytes": round(program.state_bytes / count, 1),
            "temp_bytes": round(program.temp_bytes / count, 1),
            "peak_bytes": round(program.peak_bytes / count, 1),
            "compile_s": round(program.compile_s, 2),
            "peak_mb": round(peak_megabytes(), 1),
        }


def _transform(network: NetworkConfig, spec: WeightSpec, params: PyTree) -> optax.GradientTransformation:
    optimizer = LearnedMomentumConfig(network=network).make(spec, spec.sizes(params))
    return optimizer.opt_fn(optimizer.init(jax.random.key(1)))


def _gradients(params: PyTree, steps: int) -> PyTree:
    """Random gradients, leaves [steps, *shape]."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    made = [0.01 * jax.random.normal(key, (steps, *leaf.shape), leaf.dtype) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(treedef, made)


class _Program:
    """The compiled steps of one optimizer, and the weights that they change."""

    def __init__(self, transform: optax.GradientTransformation, params: PyTree, gradients: PyTree) -> None:
        def step(carry: tuple[PyTree, PyTree], gradient: PyTree) -> tuple[tuple[PyTree, PyTree], None]:
            params, state = carry
            with jax.numpy_dtype_promotion("standard"):  # optax's Adam raises a float to an integer power
                updates, state = transform.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        @functools.partial(jax.jit, donate_argnums=0)
        def run(carry: tuple[PyTree, PyTree], gradients: PyTree) -> tuple[PyTree, PyTree]:
            if jax.tree.leaves(gradients)[0].shape[0] == 1:
                return step(carry, jax.tree.map(lambda g: g[0], gradients))[0]
            return jax.lax.scan(step, carry, gradients)[0]

        self._carry = jax.tree.map(jnp.copy, params), transform.init(params)
        self._gradients = gradients
        start = time.perf_counter()
        self._run = run.lower(self._carry, gradients).compile()
        self.compile_s = time.perf_counter() - start
        self.state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self._carry[1]))
        self.temp_bytes, self.peak_bytes = planned_memory(self._run)
        self.peak_bytes -= sum(leaf[1:].nbytes for leaf in jax.tree.leaves(gradients))  # a user has one gradient
        self._call()  # finds the memory that later calls have
        self._calls = max(1, math.ceil(_TURN / self._call()))

    def _call(self) -> float:
        start = time.perf_counter()
        self._carry = jax.block_until_ready(self._run(self._carry, self._gradients))
        return time.perf_counter() - start

    def turn(self) -> float:
        """Seconds of a call, the mean over those of a turn."""
        return sum(self._call() for _ in range(self._calls)) / self._calls
