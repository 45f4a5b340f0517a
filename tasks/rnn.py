"""Language modelling by a recurrent network: the paper's third task.

An embedding of 32, one recurrent layer of 64 ReLU units whose matrix starts as the identity and whose first state is learned, and a
linear layer, on 16 characters of LM1B at a time in the paper (Zhou, Finn, Harrison, NeurIPS 2024, section 4.1).

References:
  Le, Jaitly, Hinton, "A Simple Way to Initialize Recurrent Networks of Rectified Linear Units", 2015, arXiv 1504.00941.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from lopt.symmetry.spec import WeightSpec
from lopt.task import Task
from tasks.modules import ACTIVATIONS, Activation, check_counts, lecun, pure
from tasks.settings import TextTaskConfig

PyTree = Any


def _identity(key: jax.Array, shape: tuple[int, int], dtype: Any) -> jax.Array:
    return jnp.eye(*shape, dtype=dtype)


def _suffix(layer: int) -> str:
    return str(layer) if layer else ""  # so that a network of one layer has the paper's names


class _RNN(nnx.Module):
    """`embed`, for each layer `ff`, `rec` and `state0` (from the second on numbered: `ff1`, `rec1`, `state1`), and `out`."""

    def __init__(
        self,
        vocabulary: int,
        embedding: int,
        hidden: Sequence[int],
        activation: str,
        init_scale: float,
        rngs: nnx.Rngs,
    ):
        draw_embedding = jax.nn.initializers.truncated_normal(init_scale)
        self.embed = nnx.Param(draw_embedding(rngs.params(), (vocabulary, embedding), jnp.float32))
        for layer, (inputs, units) in enumerate(itertools.pairwise((embedding, *hidden))):
            forward = nnx.Linear(inputs, units, kernel_init=lecun(init_scale), rngs=rngs)
            setattr(self, f"ff{_suffix(layer)}", forward)
            setattr(self, f"rec{_suffix(layer)}", nnx.Linear(units, units, kernel_init=_identity, rngs=rngs))
            setattr(self, f"state{layer}", nnx.Param(jnp.zeros((1, units), jnp.float32)))
        self.out = nnx.Linear(hidden[-1], vocabulary, kernel_init=lecun(init_scale), rngs=rngs)
        self.depth = len(hidden)
        self.activation = ACTIVATIONS[activation]

    def __call__(self, tokens: jax.Array) -> jax.Array:
        sequence = self.embed[...][tokens.T]  # time first, as scans go
        for layer in range(self.depth):
            forward, recurrent = getattr(self, f"ff{_suffix(layer)}"), getattr(self, f"rec{_suffix(layer)}")
            sequence = self._recur(forward(sequence), recurrent, getattr(self, f"state{layer}")[...])
        return jnp.swapaxes(self.out(sequence), 0, 1)

    def _recur(self, driven: jax.Array, recurrent: nnx.Linear, start: jax.Array) -> jax.Array:
        kernel, bias = recurrent.kernel[...], recurrent.bias
        assert bias is not None
        driven = driven + bias[...][None, None]  # once for all times

        def step(state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            state = self.activation(x + state @ kernel)
            return state, state

        return jax.lax.scan(step, jnp.broadcast_to(start, driven.shape[1:]), driven)[1]


def rnn(
    vocabulary: int,
    embedding: int,
    hidden: Sequence[int],
    *,
    activation: Activation = "relu",
    init_scale: float = 1.0,
) -> tuple[Callable[[jax.Array], PyTree], Callable[[PyTree, jax.Array], jax.Array]]:
    """A recurrent language model as a pair of pure functions.

    `x_t = E[token_t]`, `h_{t+1} = act(W^T x_t + b + R^T h_t + c)`, `logits_t = V^T h_{t+1} + d`; further layers take the h of the
    one below for x. E starts as truncated normal of deviation init_scale, W and V as LeCun's truncated normal of variance
    init_scale^2 / fan-in, R as the identity, biases and h_0 as zero.

    Args:
      vocabulary: number V of tokens.
      embedding: width of E.
      hidden: units of each recurrent layer, one at least.
      activation: of the recurrent layers.
      init_scale: factor on all that starts at random.

    Returns:
      init: `init(key) -> params`, {"embed": [V, embedding], "ff": {"kernel", "bias"}, "rec": {"kernel", "bias"},
        "state0": [1, hidden], "out": {"kernel", "bias"}}, float32; a second layer is "ff1", "rec1", "state1", and so on.
      apply: `apply(params, tokens [B, T] int) -> logits [B, T, V]`, in the dtype of the params.

    Example:
      >>> init, apply = rnn(vocabulary=11, embedding=4, hidden=(6,))
      >>> apply(init(jax.random.key(0)), jnp.zeros((5, 7), jnp.int32)).shape
      (5, 7, 11)
    """
    return pure(lambda rngs: _RNN(vocabulary, embedding, hidden, activation, init_scale, rngs))


def rnn_spec(num_layers: int = 1) -> WeightSpec:
    """The symmetry of `rnn`: the embedding's features and the units of each layer may be reordered, symbols may not.

    The units of a layer are both rows and columns of its recurrent matrix. The first state is stored for a batch of one.

    Example:
      >>> print(rnn_spec())
      embed       symbols! embedding
      ff/bias     hidden
      ff/kernel   embedding hidden
      out/bias    symbols!
      out/kernel  hidden symbols!
      rec/bias    hidden
      rec/kernel  hidden hidden
      state0      batch! hidden
    """
    units = ["embedding", *(f"hidden{_suffix(layer)}" for layer in range(num_layers))]
    tree: dict[str, Any] = {"embed": "symbols! embedding", "out": {"kernel": f"{units[-1]} symbols!", "bias": "symbols!"}}
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(units)):
        tree[f"ff{_suffix(layer)}"] = {"kernel": f"{inputs} {outputs}", "bias": outputs}
        tree[f"rec{_suffix(layer)}"] = {"kernel": f"{outputs} {outputs}", "bias": outputs}
        tree[f"state{layer}"] = f"batch! {outputs}"
    return WeightSpec.parse(tree)


@dataclasses.dataclass(frozen=True)
class RNNConfig(TextTaskConfig):
    """A recurrent network that predicts the next character of a text.

    Raises:
      ValueError: naming the field that is out of range.

    Example:
      >>> task = RNNConfig(hidden=(8,)).make()
      >>> task.spec.sizes(task.param_shapes())["hidden"]
      8
    """

    embedding: int = 32
    """Width of the embedding of the tokens (the paper: 32)."""

    hidden: tuple[int, ...] = (64,)
    """Units of each recurrent layer, one at least (the paper: 64)."""

    GONE: ClassVar[Mapping[str, Any]] = MappingProxyType({"recurrent_scale": 1.0})

    def __post_init__(self) -> None:
        """Raise `ValueError` for a field that is out of range."""
        super().__post_init__()
        self._check_counts("embedding")
        check_counts(self._field("hidden"), self.hidden, fewest=1)

    def make(self) -> Task:
        """Load the text and build the task, whose params are those of `rnn`; see `TextTaskConfig.language_model`."""
        model = functools.partial(
            rnn, embedding=self.embedding, hidden=self.hidden, activation=self.activation, init_scale=self.init_scale
        )
        return self.language_model("rnn" + "".join(f"_{units}" for units in self.hidden), model, rnn_spec(len(self.hidden)))
