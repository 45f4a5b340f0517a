"""The NFN layer for convolutional and fully connected networks: positions of a convolution's window become channels.

NFN_NP of Zhou et al., "Permutation Equivariant Neural Functionals" (NeurIPS 2023), the layer that UNF generalises: a chain of layers,
each kernel between two sets of neurons that may be permuted. The positions of a convolution's window are not permuted; a kernel of
k positions carries k times the channels, and every pair of positions has its own coefficient.
"""

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from lopt.layers.base import Features, Layer, PyTree, expand_factors, feature_sizes
from lopt.layers.unf import apply_plan, init_coefficients
from lopt.symmetry.basis import make_plan
from lopt.symmetry.spec import SpecError, WeightSpec


def window_names(spec: WeightSpec) -> tuple[str, ...]:
    """The positions of convolution windows: fixed factors before the last two of a leaf with three or more."""
    names = {factor.name for path in spec.paths for factor in spec.factors(path)[:-2] if factor.fixed}
    return tuple(sorted(names))


def nfn_layer(
    spec: WeightSpec, c_in: int, c_out: int, sizes: Mapping[str, int], *, fold: Sequence[str] | None = None, bias: bool = True
) -> Layer:
    """The NFN_NP layer: the equivariant layer of a chain of layers with folded window positions.

    Args:
      spec: the true symmetry; fixed names that are not folded are treated as permutable.
      c_in: channels of the input features.
      c_out: channels of the output features.
      sizes: of the names, as `spec.sizes(params)` gives them: theta depends on those of the folded names.
      fold: names whose indices become channels; by default those of `window_names`.
      bias: with a bias for each output tensor (and window position).

    Returns:
      A `Layer`; theta as that of `unf_layer`, with `k c` channels for a tensor of k folded positions.

    Raises:
      SpecError: if the spec is no chain: a permutation acts twice on one tensor, or on more than two kernels.

    Example:
      >>> spec = WeightSpec.parse({"kernel": "kh! kw! in out", "bias": "out"})
      >>> layer = nfn_layer(spec, 1, 1, sizes={"kh": 3, "kw": 3, "in": 2, "out": 4})
      >>> layer.apply(layer.init(jax.random.key(0)), {"kernel": jnp.ones((3, 3, 2, 4, 1)), "bias": jnp.ones((4, 1))})["kernel"].shape
      (3, 3, 2, 4, 1)
    """
    folded = window_names(spec) if fold is None else tuple(fold)
    unknown = sorted(set(folded) - set(spec.names))
    if unknown:
        raise SpecError(f"cannot fold {unknown}: the names are {list(spec.names)}")
    rest = spec.without(*folded).relax()
    _check_chain(rest)
    positions = {path: _positions(spec, path, folded) for path in spec.paths}
    count = {path: math.prod(sizes[spec.factors(path)[i].name] for i in positions[path][1]) for path in spec.paths}
    plan = make_plan(rest)
    inputs = {path: c_in * count[path] for path in spec.paths}
    outputs = {path: c_out * count[path] for path in spec.paths}

    def init(key: jax.Array) -> PyTree:
        theta = init_coefficients(key, plan, inputs, outputs)
        return theta if bias else {"weights": theta["weights"]}

    def apply(theta: PyTree, features: Features) -> dict[str, jax.Array]:
        expanded = expand_factors(spec, features, feature_sizes(spec, features))
        x = {path: _fold(expanded[path], *positions[path]) for path in spec.paths}
        no_bias = {"bias": jnp.zeros(sum(outputs.values()), next(iter(x.values())).dtype)}
        out = apply_plan(plan, theta if bias else {**theta, **no_bias}, x, outputs)
        unfolded = {path: _unfold(out[path], expanded[path].shape[:-1], *positions[path]) for path in spec.paths}
        return {path: jnp.reshape(unfolded[path], (*features[path].shape[:-1], c_out)) for path in features}

    return Layer(init, apply)


def _positions(spec: WeightSpec, path: str, folded: Sequence[str]) -> tuple[list[int], list[int]]:
    """The positions of the factors of a leaf that stay, and of those that become channels."""
    inside = [factor.name in folded for factor in spec.factors(path)]
    return [i for i, fold in enumerate(inside) if not fold], [i for i, fold in enumerate(inside) if fold]


def _fold(x: jax.Array, stay: list[int], fold: list[int]) -> jax.Array:
    x = jnp.transpose(x, (*stay, *fold, x.ndim - 1))
    return jnp.reshape(x, (*x.shape[: len(stay)], -1))


def _unfold(y: jax.Array, shape: Sequence[int], stay: list[int], fold: list[int]) -> jax.Array:
    y = jnp.reshape(y, (*y.shape[:-1], *(shape[i] for i in fold), -1))
    order = [*stay, *fold]
    return jnp.transpose(y, (*(order.index(i) for i in range(len(order))), len(order)))


def _check_chain(spec: WeightSpec) -> None:
    kernels: dict[str, list[str]] = {}
    for path in spec.paths:
        names = [factor.name for factor in spec.factors(path)]
        if len(set(names)) < len(names):
            raise SpecError(
                f"NFN needs a chain of layers, but a permutation acts twice on leaf '{path}' ({spec.notation(path)}); use UNF"
            )
        if len(names) > 2:
            raise SpecError(
                f"NFN needs kernels between two sets of neurons, but leaf '{path}' is '{spec.notation(path)}'; use UNF"
            )
        for name in names if len(names) == 2 else []:
            kernels.setdefault(name, []).append(path)
    for name, paths in kernels.items():
        if len(paths) > 2:
            raise SpecError(f"NFN needs a chain of layers, but '{name}' permutes {len(paths)} kernels: {paths}; use UNF")
