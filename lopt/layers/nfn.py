"""The NFN layer for convolutional and fully connected networks: positions of a convolution's window become channels.

NFN_NP of Zhou et al., "Permutation Equivariant Neural Functionals" (NeurIPS 2023), the layer that UNF generalises: a chain of layers,
each kernel between two sets of neurons that may be permuted. The positions of a convolution's window are not permuted; a kernel of
k positions carries k times the channels, and every pair of positions has its own coefficient.
"""

from collections.abc import Mapping

from lopt.layers.base import Layer, over_blocks
from lopt.layers.folded import folded_unf_layer
from lopt.symmetry.spec import SpecError, WeightSpec


def window_names(spec: WeightSpec) -> tuple[str, ...]:
    """The positions of convolution windows: fixed factors before the last two of a leaf with three or more."""
    names = {factor.name for path in spec.paths for factor in spec.factors(path)[:-2] if factor.fixed}
    return tuple(sorted(names))


@over_blocks
def nfn_layer(spec: WeightSpec, c_in: int, c_out: int, sizes: Mapping[str, int], *, bias: bool = True) -> Layer:
    """The NFN_NP layer: the equivariant layer of a chain of layers with folded window positions.

    Args:
      spec: the true symmetry; fixed names other than `window_names` are treated as permutable.
      c_in: channels of the input features.
      c_out: channels of the output features.
      sizes: of the names, as `spec.sizes(params)` gives them: theta depends on those of the window.
      bias: with a bias for each output tensor and window position.

    Returns:
      A `Layer`; theta as that of `folded_unf_layer`.

    Raises:
      SpecError: if the spec is no chain: a permutation acts twice on one tensor, or on more than two kernels.

    Example:
      >>> spec = WeightSpec.parse({"kernel": "kh! kw! in out", "bias": "out"})
      >>> layer = nfn_layer(spec, 1, 1, sizes={"kh": 3, "kw": 3, "in": 2, "out": 4})
      >>> layer.apply(layer.init(jax.random.key(0)), {"kernel": jnp.ones((3, 3, 2, 4, 1)), "bias": jnp.ones((4, 1))})["kernel"].shape
      (3, 3, 2, 4, 1)
    """
    fold = window_names(spec)
    _check_chain(spec.without(*fold))
    return folded_unf_layer(spec, c_in, c_out, sizes, fold, bias=bias)


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
