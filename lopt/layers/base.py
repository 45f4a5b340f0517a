"""What every layer on weight spaces is: a pair of pure functions, and the shapes its features have."""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp

from lopt.layers.digest import Digest, Needs
from lopt.symmetry.spec import WeightSpec

PyTree = Any
Features = Mapping[str, jax.Array]  # leaf path -> [*leaf.shape, C]


class Early(NamedTuple):
    """A layer in two steps, for features that are too many to be held in memory: at every weight, then what brings weights together.

    Attributes:
      needs: `needs(theta, shapes) -> {leaf path: Needs}` for leaf path -> leaf shape: what the layer needs of features; some leaves may
        be missing.
      apply: `apply(theta, features, digests) -> features`, as the layer's own, from what it needs of some of those leaves, and the
        features of all others.
    """

    needs: Callable[[PyTree, Mapping[str, tuple[int, ...]]], dict[str, Needs]]
    apply: Callable[[PyTree, Features, Mapping[str, Digest]], dict[str, jax.Array]]


class Layer(NamedTuple):
    """A map between weight-space features as `(init, apply)`.

    Attributes:
      init: `init(key) -> theta`, a dict of arrays.
      apply: `apply(theta, features) -> features`, leaf path -> [*leaf.shape, C].
      early: the same in two steps, where the layer can be had so.
    """

    init: Callable[[jax.Array], PyTree]
    apply: Callable[[PyTree, Features], dict[str, jax.Array]]
    early: Early | None = None


def feature_sizes(spec: WeightSpec, features: Features) -> dict[str, int]:
    """The size of every name of a spec, read off features of its leaves.

    Raises:
      SpecError: naming the leaf of the features that does not fit.
    """
    return shape_sizes(spec, {path: x.shape[:-1] for path, x in features.items()})


def shape_sizes(spec: WeightSpec, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The size of every name of a spec, read off the shapes of its leaves.

    Raises:
      SpecError: naming the leaf that does not fit.
    """
    return spec.sizes({path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()})


Factory = TypeVar("Factory", bound=Callable[..., Layer])


def over_blocks(factory: Factory) -> Factory:
    """A factory of layers, for specs without axes in parts, as one for all: each block of a leaf is then a leaf of its own.

    Example:
      >>> @over_blocks
      ... def double(spec, c_in, c_out):
      ...     return Layer(lambda key: {}, lambda theta, features: {path: 2 * features[path] for path in spec.paths})
      >>> layer = double(WeightSpec.parse({"bias": "h", "kernel": "(x! | h) h"}), 1, 1)
      >>> layer.apply({}, {"bias": jnp.ones((3, 1)), "kernel": jnp.ones((5, 3, 1))})["kernel"].shape
      (5, 3, 1)
    """

    @functools.wraps(factory)
    def make(spec: WeightSpec, *args: Any, **kwargs: Any) -> Layer:
        if not spec.in_parts:
            return factory(spec, *args, **kwargs)
        inner = factory(spec.blocks, *args, **kwargs)

        def apply(theta: PyTree, features: Features) -> dict[str, jax.Array]:
            return spec.join(jnp, inner.apply(theta, spec.split(features, feature_sizes(spec, features))))

        return Layer(inner.init, apply)

    return cast(Factory, make)


def expand_factors(spec: WeightSpec, features: Features, sizes: Mapping[str, int]) -> dict[str, jax.Array]:
    """Features with composed axes split: leaf path -> [one axis per factor, C], for the leaves that are there."""
    return {
        path: jnp.reshape(features[path], (*(sizes[factor.name] for factor in spec.factors(path)), features[path].shape[-1]))
        for path in spec.paths
        if path in features
    }


def channels_first(x: jax.Array) -> jax.Array:
    """[..., C] to [C, product of the others]: products with few channels and many weights are then of long rows, which is faster."""
    return jnp.reshape(jnp.moveaxis(x, -1, 0), (x.shape[-1], math.prod(x.shape[:-1])))


def channels_last(x: jax.Array, shape: Sequence[int]) -> jax.Array:
    """[C, product of shape] to [*shape, C]."""
    return jnp.moveaxis(jnp.reshape(x, (x.shape[0], *shape)), 0, -1)


def multiply(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """x @ matrix, [..., C] and [C, K], computed channels first."""
    return channels_last(matrix.T @ channels_first(x), x.shape[:-1])


def multiply_each(features: Features, matrix: jax.Array) -> dict[str, jax.Array]:
    """x @ matrix for the features of every leaf, as one product: to compile, each costs as much as all together."""
    if not features:
        return {}
    columns = [channels_first(x) for x in features.values()]
    ends = list(itertools.accumulate(x.shape[1] for x in columns))
    products = jnp.split(matrix.T @ jnp.concatenate(columns, axis=1), ends[:-1], axis=1)
    return {path: channels_last(y, features[path].shape[:-1]) for path, y in zip(features, products, strict=True)}


def chain(*layers: Layer) -> Layer:
    """Layers one after the other with ReLU between them; theta is `{"layer0": ..., "layer1": ...}`.

    In two steps where the first of them can be had so: it is the one that sees more features than can be held.
    """

    def init(key: jax.Array) -> PyTree:
        return {f"layer{i}": layer.init(jax.random.fold_in(key, i)) for i, layer in enumerate(layers)}

    first, *others = layers

    def then(theta: PyTree, features: Features) -> dict[str, jax.Array]:
        for i, layer in enumerate(others, 1):
            features = layer.apply(theta[f"layer{i}"], {path: jax.nn.relu(x) for path, x in features.items()})
        return dict(features)

    def apply(theta: PyTree, features: Features) -> dict[str, jax.Array]:
        return then(theta, first.apply(theta["layer0"], features))

    early = first.early
    if early is None:
        return Layer(init, apply)

    def needs(theta: PyTree, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Needs]:
        return early.needs(theta["layer0"], shapes)

    def from_digests(theta: PyTree, features: Features, digests: Mapping[str, Digest]) -> dict[str, jax.Array]:
        return then(theta, early.apply(theta["layer0"], features, digests))

    return Layer(init, apply, Early(needs, from_digests))
