"""One theta over several inner problems: their meta-gradients are added up, by weights.

Each problem has an optimizer for its own weights and an estimator with particles of its own; all are part of one outer step, compiled
together. What they have in common is theta: that of DeepSets and of a UNF shared by role is compatible with any weights, that of
a plain UNF with those of one spec, of whatever widths.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lopt.estimators.base import Estimator, EstimatorConfig
from lopt.estimators.particles import particle_mesh
from lopt.optimizers.momentum import LearnedOptimizer, OptimizerConfig
from lopt.symmetry.spec import PyTree
from lopt.task.base import Datasets, DataStream, Problem, TaskConfig
from lopt.task.families import MixtureConfig, TaskMixture
from lopt.unroll import UnrollConfig, make_unroll

COUNTS = ("finished", "diverged", "capped", "nonfinite")  # of an estimator's info, added up over problems
ALL = ("all_diverged", "all_capped")  # true where they are of every problem


def optimizer_of(config: OptimizerConfig, problem: Problem) -> LearnedOptimizer:
    """The learned optimizer for the weights of a problem."""
    return config.make(problem.spec, problem.spec.sizes(problem.param_shapes()))


def shared_theta(key: jax.Array, optimizers: Mapping[str, LearnedOptimizer]) -> PyTree:
    """theta for several problems: the union of what their optimizers start with.

    Raises:
      ValueError: naming two problems whose optimizers have a part of theta of different shapes.
    """
    union: PyTree = None
    first = next(iter(optimizers), "")
    for name, optimizer in optimizers.items():
        theta = optimizer.init(key)
        union = theta if union is None else _union(union, theta, first, name, "theta")
    return union


def joint_optimizer(optimizers: Mapping[str, LearnedOptimizer]) -> LearnedOptimizer:
    """An optimizer whose `init` gives the theta for several problems; otherwise that of the first."""
    first = next(iter(optimizers.values()))
    return first._replace(init=lambda key: shared_theta(key, optimizers))


def _union(one: PyTree, other: PyTree, first: str, second: str, where: str) -> PyTree:
    if isinstance(one, dict) and isinstance(other, dict):
        both = {key: _union(one[key], other[key], first, second, f"{where}/{key}") for key in one.keys() & other.keys()}
        return {key: both[key] if key in both else {**one, **other}[key] for key in sorted({**one, **other})}
    if jax.tree.map(jnp.shape, one) != jax.tree.map(jnp.shape, other):
        shapes = [jax.tree.map(jnp.shape, tree) for tree in (one, other)]
        raise ValueError(
            f"one theta is not compatible with both '{first}' and '{second}': its {where} has shapes {shapes[0]} for one, {shapes[1]} for "
            f"the other. {_ADVICE}"
        )
    return one


_ADVICE = (
    "The update network DeepSetsConfig() or UNFConfig(share='role') is compatible with any weights; a plain UNF with problems of one spec, "
    "of any widths."
)


def check_compatible(optimizer: LearnedOptimizer, theta: PyTree, problem: Problem) -> None:
    """Raise `ValueError`, naming the problem, unless the optimizer with this theta can update its weights.

    Args:
      optimizer: made for the weights of `problem`.
      theta: perhaps of another problem, or of several.
      problem: a task, or a family.
    """
    params = problem.param_shapes()

    def update(theta: PyTree, params: PyTree) -> PyTree:
        transform = optimizer.opt_fn(theta)
        return transform.update(params, transform.init(params), params, value=jnp.float32(0), num_steps=jnp.float32(1))[0]

    try:
        jax.eval_shape(update, theta, params)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"this theta is not compatible with the weights of '{problem.name}': {error}. {_ADVICE}") from error


def combine(estimators: Mapping[str, Estimator], probabilities: Sequence[float]) -> Estimator:
    """The estimator of the weighted mean of several problems' meta-losses.

    Its datasets, state and infos are dicts by problem. The info has every problem's own as `NAME/...`, the weighted means of
    `meta_loss` and `final_loss`, and sums of the counts.
    """
    weights = dict(zip(estimators, probabilities, strict=True))

    def key_of(key: jax.Array, name: str) -> jax.Array:
        return jax.random.fold_in(key, zlib.crc32(name.encode()))  # a problem's randomness is its own, whatever stands beside it

    def init(key: jax.Array, theta: PyTree) -> PyTree:
        return {name: estimator.init(key_of(key, name), theta) for name, estimator in estimators.items()}

    def step(key: jax.Array, theta: PyTree, datasets: Any, state: PyTree) -> tuple[PyTree, PyTree, dict[str, jax.Array]]:
        total, states, infos = jax.tree.map(jnp.zeros_like, theta), {}, {}
        for name, estimator in estimators.items():
            gradient, states[name], infos[name] = estimator.step(key_of(key, name), theta, datasets[name], state[name])
            total = jax.tree.map(lambda a, g, w=weights[name]: a + w * g, total, gradient)
        return total, states, _merged(infos, weights)

    inner_steps = sum(estimator.inner_steps for estimator in estimators.values())
    return Estimator(init, step, inner_steps, max(estimator.outer_steps for estimator in estimators.values()))


def _merged(infos: Mapping[str, dict[str, jax.Array]], weights: Mapping[str, float]) -> dict[str, jax.Array]:
    merged = {f"{name}/{key}": value for name, info in infos.items() for key, value in info.items() if key not in ALL}
    for key in ("meta_loss", "final_loss"):
        known = {name: jnp.isfinite(info[key]) for name, info in infos.items()}
        shares = [jnp.where(known[name], weights[name], 0.0) for name in infos]
        values = [share * jnp.where(known[name], infos[name][key], 0.0) for name, share in zip(infos, shares, strict=True)]
        merged[key] = sum(values[1:], values[0]) / sum(shares[1:], shares[0])
    for key in COUNTS:
        merged[key] = jnp.sum(jnp.stack([info[key] for info in infos.values()]))
    for key in ALL:
        merged[key] = jnp.all(jnp.stack([info[key] for info in infos.values()]))
    return merged


class Setup(NamedTuple):
    """What a run is made of, besides its state."""

    problems: dict[str, Problem]
    optimizer: LearnedOptimizer
    estimator: Estimator
    source: Datasets | DataStream
    mesh: Mesh


def set_up(
    task: TaskConfig | MixtureConfig, optimizer_config: OptimizerConfig, estimator_config: EstimatorConfig, unroll: UnrollConfig
) -> Setup:
    """Load the data and build the optimizer and the estimator of one problem, or of several.

    Args:
      task: the problem, or several.
      optimizer_config: whose theta is to be trained.
      estimator_config: of the meta-gradient; its particles are spread over as many devices as divide their number.
      unroll: the inner trainings.

    Raises:
      ValueError: naming the problem, if one theta is not compatible with all.
    """
    made = task.make()
    problems = made.problems if isinstance(made, TaskMixture) else (made,)
    named = {problem.name: problem for problem in problems}
    optimizers = {name: optimizer_of(optimizer_config, problem) for name, problem in named.items()}
    mesh = particle_mesh(estimator_config.particles)
    estimators = {
        name: estimator_config.make(make_unroll(unroll, problem, optimizers[name]), mesh) for name, problem in named.items()
    }
    if not isinstance(made, TaskMixture):
        return Setup(named, optimizers[made.name], estimators[made.name], made.datasets, mesh)
    optimizer = joint_optimizer(optimizers)
    theta = jax.eval_shape(optimizer.init, jax.random.key(0))
    for name, problem in named.items():
        check_compatible(optimizers[name], theta, problem)
    sources = {name: problem.datasets for name, problem in named.items()}
    return Setup(named, optimizer, combine(estimators, made.probabilities), _Sources(sources), mesh)


class _Sources(DataStream):
    """The data of several problems."""

    def __init__(self, sources: dict[str, Datasets | DataStream]) -> None:
        self._sources = sources
        self._given: dict[str, Datasets] = {}

    def at(self, step: int) -> Any:
        given = {name: source.at(step) for name, source in self._sources.items()}
        if not self._given or any(given[name] is not self._given[name] for name in given):
            self._given = given
        return self._given
