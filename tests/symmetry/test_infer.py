"""Inferred specs: equal to those written by hand, invariant, and as large as their notation allows."""

import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.symmetry import WeightSpec, infer_spec
from lopt.symmetry.compare import numbered
from lopt.symmetry.spec import named_leaves
from tests.symmetry import concatenation_networks, sequence_networks
from tests.symmetry.networks import Network

NETWORKS = sequence_networks.NETWORKS | concatenation_networks.NETWORKS  # and those of networks.py, on which they build

Place = tuple[str, int]  # path of a block of a leaf, position among its factors


def infer(network: Network, **options) -> WeightSpec:
    return infer_spec(network.fn, network.params, *network.inputs, ignore_ties=network.ignore_ties, **options)


def places(spec: WeightSpec) -> dict[str, list[Place]]:
    """name -> where it stands."""
    found: dict[str, list[Place]] = {}
    for path in spec.blocks.paths:
        for position, factor in enumerate(spec.blocks.factors(path)):
            found.setdefault(factor.name, []).append((path, position))
    return found


class Mover:
    """Evaluates a network with permutations applied to any factors of any leaves, tied or not.

    Every factor has an order for each index of its owner, or of the factor that a test takes for one; without one it has a single row.
    """

    def __init__(self, network: Network, spec: WeightSpec):
        self.sizes, blocks = spec.sizes(network.params), spec.blocks
        self.names = {(path, i): factor.name for path in blocks.paths for i, factor in enumerate(blocks.factors(path))}
        shapes = {path: [self.sizes[factor.name] for factor in blocks.factors(path)] for path in blocks.paths}
        structure, arrays = jax.tree.structure(network.params), dict(named_leaves(network.params))

        def evaluate(indices):
            found = {}
            for path, block in spec.split(arrays, self.sizes).items():
                moved = jnp.reshape(block, shapes[path])
                for position, size in enumerate(shapes[path]):
                    # An index for every entry but those along factors that stand alone, which may differ from row to row.
                    moved = jnp.take_along_axis(moved, indices[path, position], axis=position) if size else moved
                found[path] = jnp.reshape(moved, block.shape)
            leaves = spec.join(jnp, found)
            return jax.tree.leaves(network.fn(jax.tree.unflatten(structure, [leaves[path] for path in arrays]), *network.inputs))

        self.shapes = shapes
        self.compiled = jax.jit(evaluate)
        self.still = {place: self.index(place, np.arange(self.sizes[name])) for place, name in self.names.items()}
        self.value = [np.asarray(leaf) for leaf in self.compiled(self.still)]

    def index(self, place: Place, order: np.ndarray, owner: int | None = None) -> np.ndarray:
        """The entries to take along one factor of a leaf: `order` [n], or [owners, n] with a row for each index along `owner`."""
        path, position = place
        shape = self.shapes[path]
        if owner is not None and owner > position:
            order = order.T
        kept = {position} if owner is None else {position, owner}
        return np.broadcast_to(np.reshape(order, [size if axis in kept else 1 for axis, size in enumerate(shape)]), shape)

    def change(self, orders: dict[Place, np.ndarray], owners: dict[Place, int | None] | None = None) -> float:
        """The largest change of the function's value, relative to its size."""
        indices = {place: self.index(place, order, (owners or {}).get(place)) for place, order in orders.items()}
        moved = self.compiled(self.still | indices)
        return max(
            float(np.max(np.abs(after - before)) / np.max(np.abs(before)))
            for before, after in zip(self.value, map(np.asarray, moved), strict=True)
        )

    def breaks(self, moved: list[Place], rng: np.random.Generator) -> bool:
        """Whether some permutation of these places, all in the same way, changes the value by far more than rounding does."""
        size = self.sizes[self.names[moved[0]]]
        return any(self.change(dict.fromkeys(moved, cycle(size, rng))) > 1e-5 for _ in range(4))


def cycle(size: int, rng: np.random.Generator) -> np.ndarray:
    """A permutation that leaves nothing in place."""
    order, relabel = np.empty(size, int), rng.permutation(size)
    order[relabel] = np.roll(relabel, 1)
    return order


def parts(members: list[Place], rng: np.random.Generator) -> Iterator[list[Place]]:
    """Subsets that are neither empty nor all: every one of a few places; of many, all runs of neighbours and some at random."""
    count = len(members)
    if count <= 6:
        for size in range(1, count):
            yield from map(list, itertools.combinations(members, size))
        return
    for start, stop in itertools.combinations(range(count + 1), 2):
        if stop - start < count:
            yield members[start:stop]
    for _ in range(40):
        chosen = rng.random(count) < rng.random()
        if 0 < chosen.sum() < count:
            yield list(itertools.compress(members, chosen))


def nestable(spec: WeightSpec, members: dict[str, list[Place]]) -> Iterator[tuple[str, str]]:
    """Names that could be nested in another, going by the leaves they stand in, but are not."""
    for name, owner in itertools.permutations(spec.names, 2):
        leaves = [path for path, _ in members[name]]
        once = all([path for path, _ in members[owner]].count(leaf) == 1 for leaf in leaves)
        free = name in spec.permutable and name not in {*spec.nested, *spec.nested.values()} and owner not in spec.nested
        if once and free and len(set(leaves)) == len(leaves):
            yield name, owner


@pytest.fixture(scope="module", autouse=True)
def promotion_allowed() -> Iterator[None]:
    """Flax's layers promote, as any function that is handed over may."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module", params=sorted(NETWORKS))
def network(request, promotion_allowed) -> Network:
    return NETWORKS[request.param]()


def test_the_spec_written_by_hand_is_found(network):
    found, true = infer(network), network.spec
    assert str(numbered(found)) == str(numbered(true)), f"found:\n{found}\nby hand:\n{true}"
    assert sorted(found.sizes(network.params).values()) == sorted(true.sizes(network.params).values())


def owners_of(spec: WeightSpec) -> dict[Place, int | None]:
    return {(path, position): owner for path in spec.blocks.paths for position, owner in enumerate(spec.blocks.owners(path))}


def test_the_function_is_invariant_and_no_more_can_be_freed_or_untied(network):
    spec, rng = network.spec, np.random.default_rng(0)
    mover, members = Mover(network, spec), places(spec)
    assert all(np.isfinite(leaf).all() for leaf in mover.value)
    for seed in range(3):
        for nested in (True, False):  # within the owners, and the owners themselves: together they generate the group
            names = [name for name in spec.permutable if (name in spec.nested) == nested]
            rows = {name: (mover.sizes[spec.nested[name]],) if nested else () for name in names}
            element = {
                name: rng.permuted(np.broadcast_to(np.arange(n := mover.sizes[name]), (*rows[name], n)), axis=-1)
                for name in names
            }
            orders = {place: element[name] for name in names for place in members[name]}
            assert mover.change(orders, owners_of(spec)) < 2e-6, (seed, nested)
    for name, owner in nestable(spec, members):
        bound = {place: next(p for q, p in members[owner] if q == place[0]) for place in members[name]}
        orders = [np.stack([cycle(mover.sizes[name], rng) for _ in range(mover.sizes[owner])]) for _ in range(4)]
        broken = [
            mover.change(dict.fromkeys(members[name], order), bound) > 1e-5 for order in orders if (order != order[0]).any()
        ]
        assert any(broken) or not broken, f"'{name}' can be nested in '{owner}'"
    for name in spec.permutable:
        for part in parts([place for place in members[name] if place[0] not in network.inert], rng):
            assert mover.breaks(part, rng), f"'{name}' need not be one permutation: {part} can move alone"
    fixed = sorted(set(spec.names) - set(spec.permutable))
    for name in fixed:
        assert mover.breaks(members[name], rng), f"'{name}' need not be fixed"
    for one, other in itertools.combinations(fixed, 2):
        if mover.sizes[one] == mover.sizes[other]:
            assert mover.breaks(members[one] + members[other], rng), f"'{one}' and '{other}' can move together"
