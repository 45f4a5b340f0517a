"""The DeepSets layers: one linear map shared by every weight of every tensor, with or without the mean over all weights.

The baseline of "Universal Neural Functionals" (NeurIPS 2024): equivariant to any permutation whatever, after Zaheer et al., "Deep
Sets" (NeurIPS 2017), equation 4. The paper's released code leaves the pooling term out: then no weight sees another.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from lopt.layers.base import Early, Features, Layer, PyTree, multiply_each
from lopt.layers.digest import Digest, Needs
from lopt.symmetry.spec import WeightSpec


def deep_sets_layer(spec: WeightSpec, c_in: int, c_out: int) -> Layer:
    """out = in @ kernel + bias at every weight.

    Args:
      spec: not needed; every layer takes one, so that layers can be exchanged.
      c_in: channels of the input features.
      c_out: channels of the output features.

    Returns:
      A `Layer` with theta `{"kernel": [c_in, c_out], "bias": [c_out]}`.
    """
    del spec

    def init(key: jax.Array) -> PyTree:
        return {"kernel": jax.random.normal(key, (c_in, c_out), jnp.float32) * c_in**-0.5, "bias": jnp.zeros(c_out, jnp.float32)}

    def apply(theta: PyTree, features: Features) -> dict[str, jax.Array]:
        return {path: _add_bias(y, theta["bias"]) for path, y in multiply_each(features, theta["kernel"]).items()}

    def needs(theta: PyTree, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Needs]:
        return {path: Needs(shape, theta["kernel"]) for path, shape in shapes.items()}

    def from_digests(theta: PyTree, features: Features, digests: Mapping[str, Digest]) -> dict[str, jax.Array]:
        found = {path: _add_bias(jnp.moveaxis(digest.product, 0, -1), theta["bias"]) for path, digest in digests.items()}
        return found | apply(theta, features)

    return Layer(init, apply, Early(needs, from_digests))


def _add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    return y + jnp.broadcast_to(bias, y.shape)


def pooled_deep_sets_layer(spec: WeightSpec, c_in: int, c_out: int) -> Layer:
    """out = in @ kernel + mean over all weights of all tensors(in) @ pooled + bias, Zaheer et al., equation 4.

    Args:
      spec: not needed; every layer takes one, so that layers can be exchanged.
      c_in: channels of the input features.
      c_out: channels of the output features.

    Returns:
      A `Layer` with theta `{"kernel": [c_in, c_out], "pooled": [c_in, c_out], "bias": [c_out]}`.
    """
    pointwise = deep_sets_layer(spec, c_in, c_out)

    def init(key: jax.Array) -> PyTree:
        kernel_key, pooled_key = jax.random.split(key)
        return {**pointwise.init(kernel_key), "pooled": jax.random.normal(pooled_key, (c_in, c_out), jnp.float32) * c_in**-0.5}

    def apply(theta: PyTree, features: Features) -> dict[str, jax.Array]:
        total = sum(jnp.sum(x, axis=tuple(range(x.ndim - 1))) for x in features.values())
        count = sum(x.size // x.shape[-1] for x in features.values())
        mean = total / count
        return pointwise.apply({**theta, "bias": theta["bias"] + mean @ theta["pooled"]}, features)

    def needs(theta: PyTree, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Needs]:
        both = jnp.concatenate([theta["kernel"], theta["pooled"]], axis=1)
        return {path: Needs(shape, both) for path, shape in shapes.items()}

    def from_digests(theta: PyTree, features: Features, digests: Mapping[str, Digest]) -> dict[str, jax.Array]:
        products = {path: jnp.moveaxis(digest.product, 0, -1) for path, digest in digests.items()}
        pooled = [y[..., c_out:] for y in products.values()] + list(multiply_each(features, theta["pooled"]).values())
        mean = sum(jnp.sum(y, axis=tuple(range(y.ndim - 1))) for y in pooled) / sum(y.size // c_out for y in pooled)
        shared = {**theta, "bias": theta["bias"] + mean}
        return {path: _add_bias(y[..., :c_out], shared["bias"]) for path, y in products.items()} | pointwise.apply(
            shared, features
        )

    return Layer(init, apply, Early(needs, from_digests))
