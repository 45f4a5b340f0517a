"""What an update network sees: channels of every weight, of every tensor, and of the training as a whole.

Features are made of kinds (value, momenta, time, ...), each a config of its own. A kind names the accumulators that it reads; kinds
that read the same one share it. Every channel says how it is clipped and by what it is divided, statically, so that a kernel can do both.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from lopt.layers.digest import Channel
from lopt.layers.kernels.program import Form, Kept, Program
from lopt.layers.step import Raw
from lopt.symmetry.spec import PyTree, WeightSpec, named_leaves

StateDtype = Literal["float32", "bfloat16"]


class Context(NamedTuple):
    """What an update may know besides weights and gradients.

    Attributes:
      count: inner steps done, int32 [].
      loss: of the batch whose gradients these are, float32 []; None where the loop does not say (`value=`).
      num_steps: inner steps of the whole training, float32 []; None where nobody says.
      spec: of the weights, static; without leaves where nobody says.
    """

    count: jax.Array
    loss: jax.Array | None = None
    num_steps: jax.Array | None = None
    spec: WeightSpec = WeightSpec(())

    def fraction_done(self, who: str) -> jax.Array:
        """count / num_steps, in [0, 1].

        Raises:
          ValueError: naming `who` needs it, if num_steps is not known.
        """
        if self.num_steps is None:
            raise ValueError(
                f"{who} sees how much of the training is left: say how many steps it has, num_steps=N in lopt.load, or as an argument of "
                "update(grads, state, params, num_steps=N)"
            )
        return jnp.clip(self.count.astype(jnp.float32) / jnp.maximum(self.num_steps.astype(jnp.float32), 1.0), 0.0, 1.0)


class Accumulator(NamedTuple):
    """What is kept of past gradients: leaf by leaf a dict of arrays, of the leaf's shape or with some of its axes left out.

    Attributes:
      init: `init(w) -> {name: array}`.
      update: `update(state, g) -> state`; g is float32.
      kept: the same in the words of the kernel; None: only XLA can compute it.
    """

    init: Callable[[jax.Array], dict[str, jax.Array]]
    update: Callable[[dict[str, jax.Array], jax.Array], dict[str, jax.Array]]
    kept: Kept | None = None


class Leaf(NamedTuple):
    """One tensor as a kind of feature sees it.

    Attributes:
      value: w, float32.
      gradient: g, float32.
      kept: accumulator -> its state, after this gradient, float32.
      context: of the step.
    """

    value: jax.Array
    gradient: jax.Array
    kept: Mapping[str, Mapping[str, jax.Array]]
    context: Context


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of feature: a config that says what it reads and what it gives."""

    def accumulators(self) -> dict[str, Accumulator]:
        """By name; kinds that use one name must mean the same."""
        return {}

    def channels(self, normal: Channel) -> tuple[Channel, ...]:
        """Its channels per weight; `normal` is how the features as a whole clip and normalise."""
        return ()

    def per_weight(self, leaf: Leaf) -> Sequence[jax.Array]:
        """Arrays of the leaf's shape, one a channel."""
        return ()

    def forms(self) -> Sequence[Form] | None:
        """`per_weight` in the words of the kernel, one a channel; None: only XLA can compute it."""
        return None

    def num_tensor_channels(self) -> int:
        """Its channels per tensor."""
        return 0

    def per_tensor(self, leaf: Leaf) -> jax.Array:
        """[channels]."""
        return jnp.zeros(0, jnp.float32)

    def num_shared_channels(self) -> int:
        """Its channels shared by all weights."""
        return 0

    def init_shared(self) -> PyTree:
        """What is kept for the shared channels."""
        return ()

    def shared(self, state: PyTree, context: Context) -> tuple[jax.Array, PyTree]:
        """[channels], and what is kept."""
        return jnp.zeros(0, jnp.float32), state


class Features(NamedTuple):
    """What a network sees, as `(init, update)`.

    Attributes:
      init: `init(params) -> state`.
      update: `update(grads, state, params, context, raw=()) -> (WeightFeatures, state)`; the channels of the leaves whose paths are
        in `raw` are left to be computed, and their state to be moved on.
      channels: of every weight.
      num_tensor: channels per tensor.
      num_shared: channels shared by all weights.
      one_leaf: `one_leaf(raw, count) -> (channels, kept)`: what `update` does for a leaf, where its channels depend on no more.
      program: the same in the words of the kernel; None: only XLA can compute it.
      left_to_xla: why there is no program; "" if there is one.
    """

    init: Callable[[PyTree], PyTree]
    update: Callable[..., tuple["WeightFeatures", PyTree]]
    channels: tuple[Channel, ...]
    num_tensor: int
    num_shared: int
    one_leaf: Callable[[Raw, jax.Array], tuple[tuple[jax.Array, ...], PyTree]]
    program: Program | None
    left_to_xla: str

    @property
    def num_channels(self) -> int:
        """All channels of a weight: the width of a network's input."""
        return len(self.channels) + self.num_tensor + self.num_shared


class WeightFeatures(NamedTuple):
    """Features of every weight, as they come: a network clips and normalises the channels as they declare.

    Attributes:
      channels: leaf path -> one array [*leaf.shape] a channel.
      tensors: leaf path -> [channels per tensor].
      shared: [channels shared by all weights].
      raw: leaf path -> what the channels of the leaf are to be computed of, for leaves that are not in `channels`; None: there are none.
      count: inner steps done, int32 [], where some are raw.
    """

    channels: Mapping[str, tuple[jax.Array, ...]]
    tensors: Mapping[str, jax.Array]
    shared: jax.Array
    raw: Mapping[str, Raw] | None = None
    count: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class FeaturesConfig:
    """What an update network sees of each weight."""

    state_dtype: StateDtype = "float32"
    """How accumulators are kept between steps. bfloat16 halves their memory, but what adds less than a 256th to one is lost, which slow
    averages notice."""

    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of features, in the order of the network's inputs."""
        raise NotImplementedError(f"{type(self).__name__} does not define kinds()")

    def normal(self) -> Channel:
        """How channels are clipped and normalised that do not say otherwise."""
        raise NotImplementedError(f"{type(self).__name__} does not define normal()")

    def make(self) -> Features:
        """The features as pure functions."""
        return compose(self.kinds(), self.normal(), jnp.dtype(self.state_dtype))


def compose(kinds: Sequence[Kind], normal: Channel, state_dtype: Any = jnp.float32) -> Features:
    """Features of several kinds, side by side; accumulators of one name are kept once.

    Args:
      kinds: in the order of the network's inputs.
      normal: how channels are clipped and normalised that do not say otherwise.
      state_dtype: in which accumulators are kept between steps; all is computed in float32.
    """
    accumulators: dict[str, Accumulator] = {}
    for kind in kinds:
        accumulators |= {name: found for name, found in kind.accumulators().items() if name not in accumulators}
    channels = tuple(channel for kind in kinds for channel in kind.channels(normal))

    def init(params: PyTree) -> PyTree:
        leaves, structure = jax.tree.flatten(params)
        kept = {}
        for name, accumulator in accumulators.items():
            found = [{part: x.astype(state_dtype) for part, x in accumulator.init(w).items()} for w in leaves]
            parts = found[0] if found else accumulator.init(jnp.zeros(()))  # optax asks for the state of params without leaves
            kept[name] = {part: jax.tree.unflatten(structure, [each[part] for each in found]) for part in parts}
        return {"kept": kept, "shared": [kind.init_shared() for kind in kinds]}

    program, left_to_xla = _program(kinds, accumulators, channels)

    def one_leaf(raw: Raw, context: Context) -> tuple[tuple[jax.Array, ...], dict[str, dict[str, jax.Array]]]:
        after = {name: accumulators[name].update(dict(raw.kept[name]), raw.gradient) for name in accumulators}
        leaf = Leaf(raw.value, raw.gradient, after, context)
        return tuple(x for kind in kinds for x in kind.per_weight(leaf)), after

    def update(
        grads: PyTree, state: PyTree, params: PyTree, context: Context, raw: Collection[str] = ()
    ) -> tuple[WeightFeatures, PyTree]:
        named = named_leaves(params)
        gradients = [g.astype(jnp.float32) for g in jax.tree.leaves(grads)]
        if len(gradients) != len(named):
            raise ValueError(f"params have {len(named)} leaves, gradients {len(gradients)}")
        before = {name: {part: jax.tree.leaves(tree) for part, tree in parts.items()} for name, parts in state["kept"].items()}
        here = {
            path: Raw(
                w.astype(jnp.float32),
                g,
                {name: {part: xs[i].astype(jnp.float32) for part, xs in parts.items()} for name, parts in before.items()},
            )
            for i, ((path, w), g) in enumerate(zip(named, gradients, strict=True))
        }
        left = {path: each for path, each in here.items() if path in raw}
        computed = {path: one_leaf(each, context) for path, each in here.items() if path not in raw}
        weights = {path: channels for path, (channels, _) in computed.items()}
        moved = {path: after for path, (_, after) in computed.items()}
        tensors = {}
        for path, each in here.items():  # what is per tensor of leaves that are left to the kernel is of kinds that keep nothing
            leaf = Leaf(each.value, each.gradient, moved.get(path, {}), context)
            tensors[path] = _joined([kind.per_tensor(leaf) for kind in kinds if kind.num_tensor_channels()])
        found = [kind.shared(old, context) for kind, old in zip(kinds, state["shared"], strict=True)]
        features = WeightFeatures(weights, tensors, _joined([x for x, _ in found]), left or None, context.count)
        after = {"kept": state["kept"], "shared": [new for _, new in found]}
        return features, move_on(after, params, moved)

    return Features(
        init,
        update,
        channels,
        sum(kind.num_tensor_channels() for kind in kinds),
        sum(kind.num_shared_channels() for kind in kinds),
        lambda raw, count: one_leaf(raw, Context(count)),
        program,
        left_to_xla,
    )


def move_on(state: PyTree, params: PyTree, moved: Mapping[str, Mapping[str, Mapping[str, jax.Array]]]) -> PyTree:
    """The state of features with other values of the accumulators of some leaves: path -> accumulator -> part, kept as before."""
    paths, structure = [path for path, _ in named_leaves(params)], jax.tree.structure(params)

    def replaced(name: str, part: str, tree: PyTree) -> PyTree:
        pairs = zip(paths, jax.tree.leaves(tree), strict=True)
        return jax.tree.unflatten(structure, [moved[p][name][part].astype(x.dtype) if p in moved else x for p, x in pairs])

    kept = {name: {part: replaced(name, part, tree) for part, tree in parts.items()} for name, parts in state["kept"].items()}
    return {**state, "kept": kept}


def _program(
    kinds: Sequence[Kind], accumulators: Mapping[str, Accumulator], channels: Sequence[Channel]
) -> tuple[Program | None, str]:
    """What the kernel can compute of kinds, or why it cannot."""
    forms: list[Form] = []
    for kind in kinds:
        name, own = type(kind).__name__, kind.forms() if kind.channels(Channel()) else ()
        if own is None:
            return None, f"{name} does not say forms()"
        if kind.num_tensor_channels() and kind.accumulators():
            return None, f"{name} has channels per tensor of what it keeps"
        forms += own
    unknown = [name for name, accumulator in accumulators.items() if accumulator.kept is None]
    if unknown:
        return None, f"what is kept as {unknown[0]!r} has no form"
    if len(forms) != len(channels):
        raise ValueError(f"features have {len(channels)} channels per weight and {len(forms)} forms")
    return Program(tuple((name, found.kept) for name, found in accumulators.items() if found.kept), tuple(forms)), ""


def _joined(parts: Sequence[jax.Array]) -> jax.Array:
    parts = [part for part in parts if part.size]
    return jnp.concatenate(parts) if parts else jnp.zeros(0, jnp.float32)


def moving_average(decay: float, x: jax.Array, g: jax.Array) -> jax.Array:
    """decay x + (1 - decay) g."""
    return jnp.float32(decay) * x + jnp.float32(1 - decay) * g


def bias_correction(decay: float, count: jax.Array) -> jax.Array:
    """1 - decay^(count + 1): what an average that began at zero is divided by after count + 1 terms."""
    if decay == 0:
        return jnp.float32(1)
    return -jnp.expm1((count.astype(jnp.float32) + 1) * jnp.float32(math.log(decay)))
