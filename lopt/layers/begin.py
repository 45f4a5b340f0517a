"""Layers that begin as DeepSets: a pointwise map shared by all tensors, plus a small multiple of a layer's own terms.

Evolution strategies perturb every coefficient by the same sigma, and Adam moves every one by the same step. An equivariant layer has
tens of terms for each tensor, so its output is moved more by both than that of a pointwise layer, and each of its coefficients has a
fraction of the gradient. With a shared pointwise map beside it and its own terms scaled down, it is perturbed as DeepSets is, learns
what all tensors share as fast, and what tells them apart from there.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from lopt.layers.base import Early, Features, Layer, PyTree
from lopt.layers.deep_sets import deep_sets_layer
from lopt.layers.digest import Digest, Needs
from lopt.symmetry.spec import WeightSpec

START = 0.1  # of their usual size: coefficients of the terms before training


def begin_as_deep_sets(layer: Layer, spec: WeightSpec, c_in: int, c_out: int, multiple: float) -> Layer:
    """out = in @ kernel + bias + multiple * layer(in), kernel and bias shared by every weight of every tensor.

    Args:
      layer: from c_in to c_out channels; its coefficients begin at a tenth of their usual size.
      spec: of its leaves.
      c_in: channels of the input features.
      c_out: channels of the output features.
      multiple: fixed, such as 0.1.

    Returns:
      A `Layer` with theta `{"shared": {"kernel": [c_in, c_out], "bias": [c_out]}, "terms": theta of layer}`.

    Raises:
      ValueError: if the multiple is not positive.

    Example:
      >>> spec = WeightSpec.parse({"kernel": "inputs hidden", "bias": "hidden"})
      >>> inner = deep_sets_layer(spec, 2, 3)
      >>> sorted(begin_as_deep_sets(inner, spec, 2, 3, 0.1).init(jax.random.key(0)))
      ['shared', 'terms']
    """
    if not multiple > 0:
        raise ValueError(f"the multiple of a layer's own terms must be positive, got {multiple}; None: the layer alone")
    shared = deep_sets_layer(spec, c_in, c_out)

    def init(key: jax.Array) -> PyTree:
        keys = jax.random.split(key)
        return {"shared": shared.init(keys[0]), "terms": jax.tree.map(lambda x: START * x, layer.init(keys[1]))}

    def add(a: Mapping[str, jax.Array], b: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {path: a[path] + multiple * b[path] for path in a}

    def apply(theta: PyTree, features: Features) -> dict[str, jax.Array]:
        return add(shared.apply(theta["shared"], features), layer.apply(theta["terms"], features))

    if layer.early is None or shared.early is None:
        return Layer(init, apply)
    early, pointwise = layer.early, shared.early

    def needs(theta: PyTree, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Needs]:
        found = early.needs(theta["terms"], shapes)
        kernel = theta["shared"]["kernel"]
        return {path: each._replace(matrix=jnp.concatenate([kernel, each.matrix], axis=1)) for path, each in found.items()}

    def from_digests(theta: PyTree, features: Features, digests: Mapping[str, Digest]) -> dict[str, jax.Array]:
        own = {path: digest._replace(product=_shaped(digest.product[:c_out], digest.shape)) for path, digest in digests.items()}
        rest = {path: digest._replace(product=digest.product[c_out:]) for path, digest in digests.items()}
        return add(pointwise.apply(theta["shared"], features, own), early.apply(theta["terms"], features, rest))

    return Layer(init, apply, Early(needs, from_digests))


def _shaped(product: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[K, one axis per factor] as [K, *shape of the leaf]."""
    return jnp.reshape(product, (product.shape[0], *shape))
