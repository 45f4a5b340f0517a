"""Language modelling by gated recurrent units, of one or more layers.

References:
  Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation", EMNLP 2014.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lopt.symmetry.spec import WeightSpec
from lopt.task import Task
from tasks.modules import check_counts, lecun
from tasks.settings import Model, TextTaskConfig

PyTree = Any

GATES = ("r", "z", "n")  # reset, update, new


def cell_init(key: jax.Array, inputs: int, hidden: int, init_scale: float = 1.0) -> PyTree:
    """Fresh weights of a cell, float32: LeCun's normal from the inputs, orthogonal from the states, biases zero.

    Returns:
      {"ir", "iz", "in": {"kernel": [inputs, H], "bias": [H]}, "hr", "hz", "hn": {"kernel": [H, H]}, "hn": with a "bias"}.
    """
    orthogonal = jax.nn.initializers.orthogonal(init_scale)
    cell: dict[str, Any] = {}
    for i, gate in enumerate(GATES):
        key_i, key_h = jax.random.split(jax.random.fold_in(key, i))
        cell[f"i{gate}"] = {
            "kernel": lecun(init_scale)(key_i, (inputs, hidden), jnp.float32),
            "bias": jnp.zeros(hidden, jnp.float32),
        }
        cell[f"h{gate}"] = {"kernel": orthogonal(key_h, (hidden, hidden), jnp.float32)}
    cell["hn"]["bias"] = jnp.zeros(hidden, jnp.float32)
    return cell


def joined(cell: PyTree, side: str, name: str) -> jax.Array:
    """The kernels or biases of all gates side by side, [..., 3 H]; side "i" of the inputs, "h" of the states."""
    return jnp.concatenate([cell[f"{side}{gate}"][name] for gate in GATES], axis=-1)


def recur(cell: PyTree, state: jax.Array, driven: jax.Array, skipped: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """States of a GRU over time.

    `r = sigmoid(i_r + W_hr^T h)`, `z` alike, `n = tanh(i_n + r * (W_hn^T h + b_hn))`, `h <- (1 - z) n + z h`.

    Args:
      cell: of `cell_init`.
      state: h at first, [B, H].
      driven: what the inputs give each gate, i = W_i^T x + b_i: [T, B, 3 H].
      skipped: [T, B, 1], where the state stays as it is; None: nowhere.

    Returns:
      The last state, and all, [T, B, H].
    """
    kernel, bias = joined(cell, "h", "kernel"), cell["hn"]["bias"][None]

    def step(state: jax.Array, inputs: tuple[jax.Array, jax.Array | None]) -> tuple[jax.Array, jax.Array]:
        x, skip = inputs
        (x_r, x_z, x_n), (h_r, h_z, h_n) = jnp.split(x, 3, axis=-1), jnp.split(state @ kernel, 3, axis=-1)
        reset, update = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
        new = (1 - update) * jnp.tanh(x_n + reset * (h_n + bias)) + update * state
        state = new if skip is None else jnp.where(skip, state, new)
        return state, state

    return jax.lax.scan(step, state, (driven, skipped))


def cell_spec(inputs: str, hidden: str) -> dict[str, Any]:
    """The symmetry of a cell: all gates of a unit move together."""
    from_inputs = {f"i{gate}": {"kernel": f"{inputs} {hidden}", "bias": hidden} for gate in GATES}
    from_states: dict[str, dict[str, str]] = {f"h{gate}": {"kernel": f"{hidden} {hidden}"} for gate in GATES}
    from_states["hn"]["bias"] = hidden
    return from_inputs | from_states


def gru(vocabulary: int, embedding: int, hidden: Sequence[int], *, init_scale: float = 1.0) -> Model:
    """A language model as a pair of pure functions: an embedding, layers of `recur` from states of zero, and a linear layer.

    The embedding starts as truncated normal of deviation init_scale, the rest as `cell_init` says; `logits = V^T h + d`.

    Args:
      vocabulary: number V of tokens.
      embedding: width of the embedding.
      hidden: units of each layer, one at least.
      init_scale: factor on all that starts at random.

    Returns:
      init: `init(key) -> params`, {"embed": [V, embedding], "cell0": a cell, ..., "out": {"kernel", "bias"}}, float32.
      apply: `apply(params, tokens [B, T] int) -> logits [B, T, V]`, in the dtype of the params.

    Example:
      >>> init, apply = gru(vocabulary=11, embedding=4, hidden=(6, 5))
      >>> apply(init(jax.random.key(0)), jnp.zeros((5, 7), jnp.int32)).shape
      (5, 7, 11)
    """

    def init(key: jax.Array) -> PyTree:
        embed, out, *cells = jax.random.split(key, 2 + len(hidden))
        drawn = jax.nn.initializers.truncated_normal(init_scale)(embed, (vocabulary, embedding), jnp.float32)
        kernel = lecun(init_scale)(out, (hidden[-1], vocabulary), jnp.float32)
        sizes = itertools.pairwise((embedding, *hidden))
        layers = {f"cell{i}": cell_init(cells[i], *of_one, init_scale) for i, of_one in enumerate(sizes)}
        return {"embed": drawn, **layers, "out": {"kernel": kernel, "bias": jnp.zeros(vocabulary, jnp.float32)}}

    def apply(params: PyTree, tokens: jax.Array) -> jax.Array:
        sequence = params["embed"][tokens.T]  # time first, as scans go
        for index, units in enumerate(hidden):
            cell = params[f"cell{index}"]
            driven = sequence @ joined(cell, "i", "kernel") + joined(cell, "i", "bias")[None, None]
            _, sequence = recur(cell, jnp.zeros((tokens.shape[0], units), sequence.dtype), driven)
        return jnp.swapaxes(sequence @ params["out"]["kernel"] + params["out"]["bias"][None, None], 0, 1)

    return init, apply


def gru_spec(num_layers: int = 1) -> WeightSpec:
    """The symmetry of `gru`: the embedding's features and the units of each layer may be reordered, symbols may not.

    Example:
      >>> spec = gru_spec(2)
      >>> len(spec.paths), spec.notation("cell1/in/kernel"), spec.notation("cell1/hn/kernel")
      (23, 'hidden0 hidden1', 'hidden1 hidden1')
    """
    units = ["embedding", *(f"hidden{layer}" for layer in range(num_layers))]
    tree: dict[str, Any] = {"embed": "symbols! embedding", "out": {"kernel": f"{units[-1]} symbols!", "bias": "symbols!"}}
    return WeightSpec.parse(tree | {f"cell{layer}": cell_spec(*of_one) for layer, of_one in enumerate(itertools.pairwise(units))})


@dataclasses.dataclass(frozen=True)
class GRUConfig(TextTaskConfig):
    """Gated recurrent units that predict the next token of a text.

    Raises:
      ValueError: naming the field that is out of range.

    Example:
      >>> task = GRUConfig(hidden=(8,)).make()
      >>> task.spec.sizes(task.param_shapes())["hidden0"]
      8
    """

    embedding: int = 32
    """Width of the embedding of the tokens."""

    hidden: tuple[int, ...] = (64,)
    """Units of each layer, one at least."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for a field that is out of range."""
        super().__post_init__()
        self._check_counts("embedding")
        check_counts(self._field("hidden"), self.hidden, fewest=1)

    def make(self) -> Task:
        """Load the text and build the task, whose params are those of `gru`; see `TextTaskConfig.language_model`."""
        model = functools.partial(gru, embedding=self.embedding, hidden=self.hidden, init_scale=self.init_scale)
        return self.language_model("gru" + "".join(f"_{units}" for units in self.hidden), model, gru_spec(len(self.hidden)))
