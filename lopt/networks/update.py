"""Update networks f: from the features of every weight to one number per weight.

"Universal Neural Functionals" (NeurIPS 2024), section 5.3 and appendix: three pointwise layers 19 -> 32 -> 32 -> 32 with ReLU, shared
over all weights, then 32 -> 1: pointwise again (DeepSets) or one equivariant layer (UNF).
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from lopt.features.paper import NUM_CHANNELS, NUM_WEIGHT_CHANNELS, WeightFeatures, finish
from lopt.layers.base import Layer, chain, channels_first, channels_last
from lopt.layers.deep_sets import deep_sets_layer, pooled_deep_sets_layer
from lopt.layers.dense import init_dense
from lopt.layers.digest import Digest, digest
from lopt.layers.folded import folded_unf_layer
from lopt.layers.nfn import nfn_layer
from lopt.layers.pointwise import Pointwise, pointwise, pointwise_bfloat16, pointwise_pallas
from lopt.layers.positions import position_unf_layer
from lopt.layers.shared_unf import shared_unf_layer
from lopt.layers.unf import unf_layer
from lopt.layers.untied import untied_unf_layer
from lopt.symmetry.spec import PyTree, WeightSpec

Sizes = Mapping[str, int] | None  # name -> number of indices
POINTWISE: Mapping[tuple[str, str], Pointwise] = MappingProxyType(
    {("xla", "float32"): pointwise, ("xla", "bfloat16"): pointwise_bfloat16, ("pallas", "float32"): pointwise_pallas}
)  # by kernel and matmul_dtype


class UpdateNetwork(NamedTuple):
    """f as a pair of pure functions.

    Attributes:
      init: `init(key) -> theta`.
      apply: `apply(theta, features) -> {leaf path: [*leaf.shape]}`, one number per weight.
    """

    init: Callable[[jax.Array], PyTree]
    apply: Callable[[PyTree, WeightFeatures], dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """Which update network f, and its sizes."""

    hidden: tuple[int, ...] = (32, 32, 32)
    """Widths of the pointwise layers that all weights share (the paper: 32 32 32)."""
    kernel: Literal["xla", "pallas"] = "xla"
    """What computes them: XLA's products, or one kernel for NVIDIA GPUs that keeps a block of weights on the chip; elsewhere that is
    interpreted, which is slow."""
    matmul_dtype: Literal["float32", "bfloat16"] = "float32"
    """To what their products round features and coefficients; sums are float32. With bfloat16 a step of the optimizer is faster on CPUs
    that multiply it, and f good to about three digits."""

    def last_layer(self, spec: WeightSpec, sizes: Sizes) -> Layer:
        """The layer from the last hidden width to one channel."""
        raise NotImplementedError(f"{type(self).__name__} does not define last_layer()")

    def make(self, spec: WeightSpec, sizes: Sizes = None) -> UpdateNetwork:
        """Build f for the weight spaces of a spec.

        Args:
          spec: of the weights.
          sizes: of the spec's names, for networks whose theta depends on them.

        Raises:
          ValueError: if a hidden width is not positive, or none is given, or sizes are needed and not given, or if the
            kernel does not compute in `matmul_dtype`.
        """
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden must name at least one positive width, got {self.hidden}")
        if (self.kernel, self.matmul_dtype) not in POINTWISE:
            raise ValueError(
                f"kernel='{self.kernel}' has no products in {self.matmul_dtype}: use kernel='xla' or matmul_dtype='float32'"
            )
        return update_network(self.hidden, self.last_layer(spec, sizes), POINTWISE[self.kernel, self.matmul_dtype])


@dataclasses.dataclass(frozen=True)
class DeepSetsConfig(NetworkConfig):
    """Pointwise f: every weight alone, as the paper's released code has it."""

    def last_layer(self, spec: WeightSpec, sizes: Sizes) -> Layer:
        return deep_sets_layer(spec, self.hidden[-1], 1)


@dataclasses.dataclass(frozen=True)
class PooledDeepSetsConfig(NetworkConfig):
    """Pointwise layers, then a DeepSets layer with its pooling term: every weight sees the mean over all weights."""

    def last_layer(self, spec: WeightSpec, sizes: Sizes) -> Layer:
        return pooled_deep_sets_layer(spec, self.hidden[-1], 1)


@dataclasses.dataclass(frozen=True)
class NFNConfig(NetworkConfig):
    """Pointwise layers, then one NFN layer: for chains of dense and convolutional layers, window positions folded into channels."""

    def last_layer(self, spec: WeightSpec, sizes: Sizes) -> Layer:
        if sizes is None:
            raise ValueError("the theta of an NFN depends on the sizes of convolution windows: pass sizes=spec.sizes(params)")
        return nfn_layer(spec, self.hidden[-1], 1, sizes)


@dataclasses.dataclass(frozen=True)
class UNFConfig(NetworkConfig):
    """Pointwise layers, then UNF layers: every weight sees pooled views of all others."""

    equivariant: tuple[int, ...] = ()
    """Channels of further UNF layers with ReLU between the pointwise layers and the last one (the paper: none)."""
    share: Literal["none", "role"] = "none"
    """A coefficient for every pair of tensors (`none`, the paper), or one for all pairs in the same relation (`role`): then theta does
    not grow with depth and serves other architectures."""
    fixed: Literal["relaxed", "positions", "untied", "folded"] = "relaxed"
    """Axes whose order carries meaning: treated as permutable (`relaxed`, the paper), and told apart by position features
    (`positions`) or by coefficients of their own for each index (`untied`), or folded into channels (`folded`). With the last two
    theta depends on their sizes."""

    def layer(self, spec: WeightSpec, c_in: int, c_out: int, sizes: Sizes) -> Layer:
        """One UNF layer of the kind that this config names."""
        if self.share == "role" and self.fixed == "relaxed":
            return shared_unf_layer(spec, c_in, c_out)
        if self.share == "role":
            raise ValueError(f"share='role' treats fixed axes as permutable, it does not go with fixed='{self.fixed}'")
        if self.fixed == "positions":
            return position_unf_layer(spec, c_in, c_out)
        if self.fixed == "relaxed":
            return unf_layer(spec, c_in, c_out)
        if sizes is None:
            raise ValueError(f"theta depends on the sizes of {self.fixed} axes: pass sizes=spec.sizes(params)")
        if self.fixed == "untied":
            return untied_unf_layer(spec, c_in, c_out, sizes)
        return folded_unf_layer(spec, c_in, c_out, sizes, sorted(set(spec.names) - set(spec.permutable)))

    def last_layer(self, spec: WeightSpec, sizes: Sizes) -> Layer:
        widths = (self.hidden[-1], *self.equivariant, 1)
        layers = [self.layer(spec, c_in, c_out, sizes) for c_in, c_out in itertools.pairwise(widths)]
        return layers[0] if len(layers) == 1 else chain(*layers)


def update_network(hidden: tuple[int, ...], last: Layer, apply_pointwise: Pointwise = pointwise) -> UpdateNetwork:
    """Pointwise layers with ReLU over all weights, then `last`, which maps hidden[-1] channels to 1.

    theta is `{"pointwise": {"dense0": {"kernel": [19, hidden[0]], "bias"}, ...}, "last": theta of last}`.
    """
    widths, names = (NUM_CHANNELS, *hidden), [f"dense{i}" for i in range(len(hidden))]

    def init(key: jax.Array) -> PyTree:
        keys = jax.random.split(key, len(hidden) + 1)
        return {"pointwise": init_dense(keys, widths), "last": last.init(keys[-1])}

    def apply(theta: PyTree, features: WeightFeatures) -> dict[str, jax.Array]:
        (kernel, bias), *others = ((layer["kernel"], layer["bias"]) for layer in (theta["pointwise"][name] for name in names))
        # The time features are the same for every weight: they act as a bias.
        kernel, bias = kernel[:NUM_WEIGHT_CHANNELS], bias + features.time @ kernel[NUM_WEIGHT_CHANNELS:]

        layers = [(kernel, bias), *others]
        digests: dict[str, Digest] = {}
        if last.early is not None and features.channels:
            shapes = {path: x.shape[:-1] for path, x in features.weights.items()}
            shapes |= {path: channels[0].shape[1:] for path, channels in features.channels.items()}
            needs = last.early.needs(theta["last"], shapes)
            digested = {path: channels for path, channels in features.channels.items() if path in needs}
            digests = digest(layers, digested, needs, apply_pointwise)
        weights = features.weights | {path: finish(x) for path, x in features.channels.items() if path not in digests}
        hidden_features: dict[str, jax.Array] = {}
        if weights:
            # One matmul over all weights rather than one per tensor; tensors of one shape are neighbours, as layers stack them.
            # Channels come first: the rows of the products are then as long as there are weights, not as there are channels.
            shapes = {path: x.shape[:-1] for path, x in weights.items()}
            paths = sorted(shapes, key=lambda path: (shapes[path], path))
            with jax.named_scope("trunk"):
                x = jnp.concatenate([channels_first(weights[path]) for path in paths], axis=1)
                x = apply_pointwise(layers, x)
                ends = list(itertools.accumulate(math.prod(shapes[path]) for path in paths))
                splits = jnp.split(x, ends[:-1], axis=1)
            hidden_features = {path: channels_last(y, shapes[path]) for path, y in zip(paths, splits, strict=True)}
        with jax.named_scope("last_layer"):
            if last.early is not None and digests:
                out = last.early.apply(theta["last"], hidden_features, digests)
            else:
                out = last.apply(theta["last"], hidden_features)
            return {path: y[..., 0] for path, y in out.items()}

    return UpdateNetwork(init, apply)
