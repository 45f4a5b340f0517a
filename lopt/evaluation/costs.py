"""What the steps of optimizers cost on a problem's weights, beside Adam's: time and memory, gradients given."""

import dataclasses
import functools
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lopt.evaluation.baselines import BASELINES
from lopt.evaluation.rollout import OptFn
from lopt.symmetry.spec import PyTree
from lopt.task.base import Problem

ADAM = "Adam"
_TURN = 0.02  # seconds of a turn, at least
_LEAST = 4  # steps of a turn: an optimizer may do a part of its work every few steps
_CALLS = 3  # by which it is found how many steps that is


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one optimizer.

    Attributes:
      seconds: of a step, `update` and `apply_updates`, the gradient given: the median over turns.
      time_ratio: of these to Adam's: the median over turns of the ratio to Adam's turn beside it.
      state_bytes: of the optimizer's state, for each number in the weights.
      temporary_bytes: of the step's temporary buffers as XLA plans them, for each number in the weights; None where it does not say.
      memory_ratio: state and temporary buffers to Adam's.
    """

    seconds: float
    time_ratio: float
    state_bytes: float
    temporary_bytes: float | None
    memory_ratio: float


def measure_costs(problem: Problem, optimizers: Mapping[str, tuple[OptFn, PyTree]], *, turns: int = 11) -> dict[str, Cost]:
    """Time the steps of optimizers in turns, so that a machine that is busy for a while is so for all.

    A turn is one program, a loop of as many steps as take 20 ms or more, on one device. The gradients are random, the same for all, and
    change their sign from step to step, so that nothing can be taken out of the loop and no weight grows without bound.

    Args:
      problem: its initial weights are what is updated.
      optimizers: name -> (`opt_fn`, theta). Names with the same `opt_fn`, and theta of the same structure, have one program and one
        cost, that of the first theta.
      turns: of each, of which medians are taken.

    Returns:
      The costs by name. Adam, at a learning rate of 0.001, is measured in any case and left out.
    """
    params = jax.jit(problem.example.init)(jax.random.key(0))
    adam = Steps.of_adam(params)
    programs: dict[Any, Steps] = {None: adam}
    kinds = {name: (opt_fn, jax.tree.structure(theta)) for name, (opt_fn, theta) in optimizers.items()}
    for name, (opt_fn, theta) in optimizers.items():
        if kinds[name] not in programs:
            programs[kinds[name]] = Steps(opt_fn, theta, params)
    seconds = in_turns(programs, turns)
    found = {}
    for name, kind in kinds.items():
        program = programs[kind]
        ratio = np.median(seconds[kind] / seconds[None])
        known = program.temporary is not None and adam.temporary is not None
        memory = program.state + (program.temporary or 0) if known else program.state
        base = adam.state + (adam.temporary or 0) if known else adam.state
        found[name] = Cost(
            seconds=float(np.median(seconds[kind])),
            time_ratio=float(ratio),
            state_bytes=program.state / program.weights,
            temporary_bytes=None if program.temporary is None else program.temporary / program.weights,
            memory_ratio=memory / base,
        )
    return found


class Steps:
    """The compiled steps of one optimizer.

    Attributes:
      weights: numbers in the params.
      state: bytes of the optimizer's state.
      temporary: bytes of temporary buffers as XLA plans them; None where it does not say.
      compile_s: seconds of compilation.
    """

    @classmethod
    def of_adam(cls, params: PyTree) -> "Steps":
        """Those that others are compared with."""
        return cls(BASELINES["adam"].opt_fn, jnp.float32(1e-3), params)

    def __init__(self, opt_fn: OptFn, theta: PyTree, params: PyTree) -> None:
        def step(t: jax.Array, carry: tuple[PyTree, PyTree], theta: PyTree, gradient: PyTree) -> tuple[PyTree, PyTree]:
            params, state = carry
            sign = jnp.where(t % 2 == 0, 1.0, -1.0)
            signed = jax.tree.map(lambda g: g * sign.astype(g.dtype), gradient)
            transform = optax.with_extra_args_support(opt_fn(theta))
            updates, state = transform.update(signed, state, params, value=jnp.float32(1.0), num_steps=jnp.float32(1000))
            return optax.apply_updates(params, updates), state

        @functools.partial(jax.jit, donate_argnums=0)
        def run(carry: tuple[PyTree, PyTree], theta: PyTree, gradient: PyTree, steps: jax.Array) -> tuple[PyTree, PyTree]:
            return jax.lax.fori_loop(0, steps, lambda t, carry: step(t, carry, theta, gradient), carry)

        theta = jax.tree.map(jnp.asarray, theta)
        state = jax.jit(lambda theta, params: opt_fn(theta).init(params))(theta, params)
        self.weights = sum(leaf.size for leaf in jax.tree.leaves(params))
        self.state = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        self._carry = jax.tree.map(jnp.copy, params), state
        self._given = theta, _gradients(params)
        start = time.perf_counter()
        self._run = run.lower(self._carry, *self._given, jnp.int32(1)).compile()
        self.compile_s = time.perf_counter() - start
        analysis = self._run.memory_analysis()
        self.temporary = None if analysis is None else int(analysis.temp_size_in_bytes)
        self._steps = _LEAST
        self._call()  # finds the memory that later calls have
        # The fastest of some calls: a single one may have been kept waiting, and its few steps would be those of all turns.
        while (spent := min(self._call() for _ in range(_CALLS))) < _TURN and self._steps < 1 << 20:
            self._steps = min(8 * self._steps, math.ceil(1.2 * self._steps * _TURN / max(spent, 1e-6)), 1 << 20)

    def _call(self) -> float:
        start = time.perf_counter()
        self._carry = jax.block_until_ready(self._run(self._carry, *self._given, jnp.int32(self._steps)))
        return time.perf_counter() - start

    def turn(self) -> float:
        """Seconds a step."""
        return self._call() / self._steps


def in_turns(programs: Mapping[Any, Steps], turns: int) -> dict[Any, np.ndarray]:
    """Seconds a step of every program in each of so many turns, [turns]: one after another, so that a busy machine is so for all."""
    seconds = [[program.turn() for program in programs.values()] for _ in range(turns)]
    return dict(zip(programs, np.asarray(seconds).T, strict=True))


def _gradients(params: PyTree) -> PyTree:
    leaves, treedef = jax.tree.flatten(params)
    keys: Sequence[jax.Array] = list(jax.random.split(jax.random.key(1), max(len(leaves), 1)))
    made = [0.01 * jax.random.normal(key, leaf.shape, leaf.dtype) for key, leaf in zip(keys, leaves, strict=False)]
    return jax.tree.unflatten(treedef, made)
