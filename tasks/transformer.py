"""Language modelling by a Transformer: the paper's fourth task.

Pre-norm blocks of causal attention and a perceptron around a residual stream: 2 blocks of width 32, 4 heads, a perceptron of 128,
on 8 tokens of LM1B at a time in the paper (Zhou, Finn, Harrison, NeurIPS 2024, section 4.1). As in the Transformers of
`learned_optimization`, on which the paper's code builds, each head is 32 wide, positions are told by the causal mask alone, and the
perceptron's activation is GELU.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lopt.symmetry.spec import WeightSpec
from lopt.task import Task
from tasks.modules import ACTIVATIONS, Activation, lecun, pure
from tasks.settings import Model, TextTaskConfig

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of a Transformer; the defaults are the paper's."""

    vocabulary: int
    blocks: int = 2
    width: int = 32
    heads: int = 4
    head_width: int = 32
    mlp: int = 128


class Norm(nnx.Module):
    """Layer normalisation over the stream; the statistics in float32."""

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones(width, jnp.float32))
        self.offset = nnx.Param(jnp.zeros(width, jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        scale, offset = self.scale[...][None, None], self.offset[...][None, None]
        exact = x.astype(jnp.float32)
        centered = exact - jnp.mean(exact, axis=-1, keepdims=True)
        unit = centered * jax.lax.rsqrt(jnp.mean(jnp.square(centered), axis=-1, keepdims=True) + 1e-5)
        return unit.astype(x.dtype) * scale + offset


class Block(nnx.Module):
    """Attention and a perceptron around the stream; `causal`: a place sees itself and those before it, not all."""

    def __init__(self, sizes: Sizes, activation: str, init_scale: float, rngs: nnx.Rngs, causal: bool = True):
        # Every block adds to the stream twice: the variance of what it adds falls with their number.
        kernel_init = lecun(init_scale * math.sqrt(2 / sizes.blocks))

        def linear(inputs: int, outputs: int) -> nnx.Linear:
            return nnx.Linear(inputs, outputs, kernel_init=kernel_init, rngs=rngs)

        features = sizes.heads * sizes.head_width
        self.ln1 = Norm(sizes.width)
        self.query, self.key, self.value = (linear(sizes.width, features) for _ in range(3))
        self.attn_out = linear(features, sizes.width)
        self.ln2 = Norm(sizes.width)
        self.mlp0, self.mlp1 = linear(sizes.width, sizes.mlp), linear(sizes.mlp, sizes.width)
        self.heads, self.activation, self.causal = sizes.heads, ACTIVATIONS[activation], causal

    def __call__(self, stream: jax.Array) -> jax.Array:
        stream = stream + self._attend(self.ln1(stream))
        return stream + self.mlp1(self.activation(self.mlp0(self.ln2(stream))))

    def _attend(self, x: jax.Array) -> jax.Array:
        batch, length, _ = x.shape
        query, key, value = (
            jnp.reshape(project(x), (batch, length, self.heads, -1)) for project in (self.query, self.key, self.value)
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(query.shape[-1])
        past = jnp.tril(jnp.ones((length, length), bool))[None, None] if self.causal else None
        weights = jax.nn.softmax(scores.astype(jnp.float32), where=past).astype(x.dtype)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        return self.attn_out(jnp.reshape(mixed, (batch, length, -1)))


class _Transformer(nnx.Module):
    """`embed`, blocks `h0`, `h1`, ..., the final normalisation `ln_f`, and the linear `out`."""

    def __init__(self, sizes: Sizes, activation: str, init_scale: float, rngs: nnx.Rngs):
        draw_embedding = jax.nn.initializers.truncated_normal(init_scale)
        self.embed = nnx.Param(draw_embedding(rngs.params(), (sizes.vocabulary, sizes.width), jnp.float32))
        for index in range(sizes.blocks):
            setattr(self, f"h{index}", Block(sizes, activation, init_scale, rngs))
        self.ln_f = Norm(sizes.width)
        self.out = nnx.Linear(sizes.width, sizes.vocabulary, kernel_init=lecun(init_scale), rngs=rngs)
        self.blocks = sizes.blocks

    def __call__(self, tokens: jax.Array) -> jax.Array:
        stream = self.embed[...][tokens]
        for index in range(self.blocks):
            stream = getattr(self, f"h{index}")(stream)
        return self.out(self.ln_f(stream))


def transformer(
    sizes: Sizes, *, activation: Activation = "gelu", init_scale: float = 1.0
) -> tuple[Callable[[jax.Array], PyTree], Callable[[PyTree, jax.Array], jax.Array]]:
    """A Transformer language model as a pair of pure functions.

    `x = E[tokens]`, for each block `x += attention(norm(x))` and `x += W_1^T act(W_0^T norm(x) + b_0) + b_1`, then
    `logits = V^T norm(x) + d`. E starts as truncated normal of deviation init_scale, the kernels of N blocks as LeCun's truncated
    normal of variance 2 init_scale^2 / (N fan-in), V of variance init_scale^2 / fan-in, scales as one, biases and offsets as zero.

    Returns:
      init: `init(key) -> params`, {"embed": [V, width], "h0": {"ln1", "query", "key", "value", "attn_out", "ln2", "mlp0", "mlp1"},
        ..., "ln_f": {"scale", "offset"}, "out": {"kernel", "bias"}}, float32: 16 arrays a block, 5 more.
      apply: `apply(params, tokens [B, T] int) -> logits [B, T, V]`, in the dtype of the params.

    Example:
      >>> init, apply = transformer(Sizes(vocabulary=11, width=4, heads=2, head_width=3, mlp=6))
      >>> apply(init(jax.random.key(0)), jnp.zeros((5, 7), jnp.int32)).shape
      (5, 7, 11)
    """
    return pure(lambda rngs: _Transformer(sizes, activation, init_scale, rngs))


def transformer_spec(blocks: int, heads: int | None = None) -> WeightSpec:
    """The symmetry of `transformer`.

    All blocks read and write the same stream, so its permutation is one for the whole network. Each block has its own for its
    heads and for the units of its perceptron; within a block each head has one for its features of queries and keys, and another
    for those of values.

    Args:
      blocks: number of blocks.
      heads: number of heads of each; None is the view of the paper, which has one permutation of all features of queries, keys and
        values: true of the network only if each head has one feature.

    Example:
      >>> spec = transformer_spec(2, heads=4)
      >>> len(spec.paths), spec.notation("h1/query/kernel"), spec.notation("h1/attn_out/kernel")
      (37, 'embed (heads1 qk1@heads1)', '(heads1 v1@heads1) embed')
    """
    tree: dict[str, Any] = {"embed": "vocabulary! embed", "out": {"kernel": "embed vocabulary!", "bias": "vocabulary!"}}
    return WeightSpec.parse(tree | {"ln_f": NORM_SPEC} | blocks_spec(blocks, heads), **head_sizes(blocks, heads))


NORM_SPEC = {"scale": "embed", "offset": "embed"}


def blocks_spec(blocks: int, heads: int | None) -> dict[str, Any]:
    """The part of a spec that is about the blocks `h0`, `h1`, ...; arguments as of `transformer_spec`."""
    tree = {}
    for i in range(blocks):
        matched, values = (f"attention{i}",) * 2 if heads is None else _features(i, heads)
        compared = {"kernel": f"embed {matched}", "bias": matched}
        tree[f"h{i}"] = {
            "ln1": NORM_SPEC,
            "query": compared,
            "key": compared,
            "value": {"kernel": f"embed {values}", "bias": values},
            "attn_out": {"kernel": f"{values} embed", "bias": "embed"},
            "ln2": NORM_SPEC,
            "mlp0": {"kernel": f"embed hidden{i}", "bias": f"hidden{i}"},
            "mlp1": {"kernel": f"hidden{i} embed", "bias": "embed"},
        }
    return tree


def head_sizes(blocks: int, heads: int | None) -> dict[str, int]:
    """The sizes of the axes of heads, which shapes alone do not tell."""
    return {f"heads{i}": heads for i in range(blocks)} if heads is not None and heads > 1 else {}


def _features(block: int, heads: int) -> tuple[str, str]:
    """The axes of queries and keys, and of values."""
    if heads == 1:
        return f"qk{block}", f"v{block}"
    return f"(heads{block} qk{block}@heads{block})", f"(heads{block} v{block}@heads{block})"


@dataclasses.dataclass(frozen=True)
class TransformerConfig(TextTaskConfig):
    """A Transformer that predicts the next token of a text.

    Raises:
      ValueError: naming the field that is out of range.

    Example:
      >>> task = TransformerConfig(blocks=1).make()
      >>> task.spec.sizes(task.param_shapes())["hidden0"]
      128
    """

    length: int = 8
    """T, tokens read and predicted in each example (the paper: 8)."""

    blocks: int = 2
    """Number of blocks (the paper: 2)."""

    width: int = 32
    """Features of the residual stream (the paper: 32)."""

    heads: int = 4
    """Attention heads of each block (the paper: 4)."""

    head_width: int = 32
    """Features of each head (the paper: 32)."""

    mlp: int = 128
    """Hidden units of each block's perceptron (the paper: 128)."""

    activation: Activation = "gelu"
    """Of the perceptrons."""

    batch_size: int = 8
    """Examples in a batch (the paper: 8)."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for a field that is out of range."""
        super().__post_init__()
        self._check_counts("blocks", "width", "heads", "head_width", "mlp")

    def make(self) -> Task:
        """Load the text and build the task, whose params are those of `transformer`; see `TextTaskConfig.language_model`."""

        def model(vocabulary: int) -> Model:
            sizes = Sizes(vocabulary, self.blocks, self.width, self.heads, self.head_width, self.mlp)
            return transformer(sizes, activation=self.activation, init_scale=self.init_scale)

        spec = transformer_spec(self.blocks, self.heads if self.head_width > 1 else None)
        return self.language_model(f"transformer_{self.blocks}x{self.width}", model, spec)
