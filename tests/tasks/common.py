"""What the tests of all tasks share: weights in general position, and the loss with axes moved."""

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lopt.symmetry.spec import WeightSpec, named_leaves
from lopt.task.base import Task
from tasks.registry import task_configs

Place = tuple[str, int]  # leaf path, position among the leaf's factors


@functools.cache
def make(name: str, **settings: Any) -> Task:
    """A task by its registered name; made once."""
    return task_configs()[name](**settings).make()


def shapes(params: Any) -> Any:
    return jax.tree.map(jnp.shape, params)


def batch_of(task: Task, seed: int = 7) -> Mapping[str, jax.Array]:
    return task.datasets.at(0).train.batch(jax.random.key(seed))


def general(task: Task, seed: int = 0) -> Any:
    """Params in general position: fresh biases are zero, which hides how they are permuted. From numpy: nothing to compile."""
    generator = np.random.default_rng(seed)

    def draw(shape: jax.ShapeDtypeStruct) -> jax.Array:
        scale = 1.5 * math.prod(shape.shape[:-1]) ** -0.5  # of a vector 1.5; as large as lets no recurrence explode
        return jnp.asarray(scale * generator.standard_normal(shape.shape, np.float32))

    return jax.tree.map(draw, task.param_shapes())


def places(spec: WeightSpec) -> dict[str, list[Place]]:
    """name -> where it stands."""
    found: dict[str, list[Place]] = {}
    for path in spec.paths:
        for position, factor in enumerate(spec.factors(path)):
            found.setdefault(factor.name, []).append((path, position))
    return found


def move(spec: WeightSpec, params: Any, orders: Mapping[Place, np.ndarray]) -> Any:
    """The params with their factors reordered place by place, tied or not; a nested factor in the same way for all owners."""
    sizes, leaves = spec.sizes(params), []
    for path, leaf in named_leaves(params):
        factors = spec.factors(path)
        moved = np.reshape(np.asarray(leaf), [sizes[factor.name] for factor in factors])
        for position in range(len(factors)):
            if (path, position) in orders:
                moved = np.take(moved, orders[path, position], axis=position)
        leaves.append(np.reshape(moved, np.shape(leaf)))
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def changed(spec: WeightSpec, **of_leaves: str) -> WeightSpec:
    """The spec with other axes for some leaves, whose paths are written with `__` for `/`."""
    tree: dict[str, Any] = {}
    for path in spec.paths:
        *above, last = path.split("/")
        node = tree
        for part in above:
            node = node.setdefault(part, {})
        node[last] = of_leaves.pop(path.replace("/", "__"), spec.notation(path))
    assert not of_leaves, f"the spec has no {sorted(of_leaves)}"
    return WeightSpec.parse(tree)


def random_element(spec: WeightSpec, params: Any, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """As `spec.sample`, from numpy: nothing to compile."""
    sizes, nested = spec.sizes(params), spec.nested
    return {
        name: np.stack([generator.permutation(sizes[name]) for _ in range(sizes[nested[name]])])
        if name in nested
        else generator.permutation(sizes[name])
        for name in spec.permutable
    }


class Mover:
    """The loss of a task on one batch at params in general position, with their axes moved."""

    def __init__(self, task: Task):
        self.task, self.params = task, general(task)
        loss = jax.jit(task.loss)
        self.loss = functools.partial(
            lambda key, batch, params: float(loss(params, key, batch)), jax.random.key(0), batch_of(task)
        )
        self.value = self.loss(self.params)

    def change(self, spec: WeightSpec, seed: int) -> float:
        """How far a random group element of `spec` moves the loss."""
        element = random_element(spec, self.params, np.random.default_rng(seed))
        return abs(self.loss(spec.permute(self.params, element)) - self.value)

    def change_of_places(self, moved: list[Place], generator: np.random.Generator) -> float:
        """How far the loss is moved by a cyclic permutation of these places, all in the same way."""
        spec = self.task.spec
        path, position = moved[0]
        size = spec.sizes(self.params)[spec.factors(path)[position].name]
        order, relabel = np.empty(size, int), generator.permutation(size)
        order[relabel] = np.roll(relabel, 1)
        return abs(self.loss(move(spec, self.params, dict.fromkeys(moved, order))) - self.value)


def freed(spec: WeightSpec, params: Any) -> Iterator[tuple[str, list[Place]]]:
    """Every way to free one axis more: a permutable axis moved apart from those tied to it, a fixed name moved wherever it stands.

    Axes of size one do not move.
    """
    sizes = spec.sizes(params)
    for name, stands in places(spec).items():
        if sizes[name] > 1 and name in spec.permutable:
            yield from ((f"{name} of {path}", [(path, position)]) for path, position in stands)
        elif sizes[name] > 1:
            yield f"{name}!", stands
