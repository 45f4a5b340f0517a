"""The weight spaces of the paper's four tasks: as they are, and as its released code describes them.

They are here to reproduce the parameter counts that "Universal Neural Functionals" (Zhou, Finn, Harrison, NeurIPS 2024) prints;
to train, use the spec of a task. Two of the released specs are wrong:

- CNN: the kernel-height axis of the first convolution carries the permutation of its input channels. Both have size three, so
  nothing complains; the layer has 144 terms instead of 86, those in excess without a meaning.
- Transformer: the permutations are numbered as in a chain of layers. Block i reads features 2i and writes features 2i + 2, so the
  residual stream is untied between blocks although the network adds across them: terms are lost. The features of queries, keys
  and values share 2i + 1 with the hidden layer of the block's MLP, as both have 4 * 32 units: this adds terms that do not commute
  with the true permutations. The vocabulary of the embedding is not that of the head: more terms are lost.

Both versions of the Transformer have one axis for the heads and the width within a head, as the paper counts them. Axes of data
are marked as fixed, though the paper's layers treat them as permutable: `relax` the specs.
"""

import dataclasses
import itertools
from collections.abc import Mapping

from lopt.symmetry.spec import PyTree, WeightSpec


@dataclasses.dataclass(frozen=True)
class WeightSpace:
    """One of the paper's weight spaces.

    Attributes:
      title: for tables.
      true: the symmetry of the network.
      released: the spec of the released code, where it is another.
      sizes: of the names, as far as the paper states them.
    """

    title: str
    true: WeightSpec
    released: WeightSpec | None = None
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict, hash=False)


def _dense(inputs: str, outputs: str) -> PyTree:
    return {"kernel": f"{inputs} {outputs}", "bias": outputs}


def mlp_spec(*units: str) -> WeightSpec:
    """A chain of dense layers between the named sets of units."""
    return WeightSpec.parse({f"dense{i}": _dense(a, b) for i, (a, b) in enumerate(itertools.pairwise(units))})


def cnn_spec(first_window: str) -> WeightSpec:
    """Two convolutions, global average pooling and a linear head; `first_window` names the first convolution's window."""
    return WeightSpec.parse(
        {
            "conv0": {"kernel": f"{first_window} rgb! channels0", "bias": "channels0"},
            "conv1": {"kernel": "height1! width1! channels0 channels1", "bias": "channels1"},
            "head": _dense("channels1", "classes!"),
        }
    )


def rnn_spec() -> WeightSpec:
    """An embedding, a recurrent layer with a learned initial state, and a linear head.

    The state is stored with a batch axis of size one, which the paper counts as permuted.
    """
    return WeightSpec.parse(
        {
            "embed": "symbols! embedding",
            "ff": _dense("embedding", "hidden"),
            "rec": _dense("hidden", "hidden"),
            "state0": "batch! hidden",
            "out": _dense("hidden", "symbols!"),
        }
    )


def _block(stream: str, attention: str, hidden: str, out: str) -> PyTree:
    norm = {"scale": stream, "offset": stream}
    return {
        "ln1": norm,
        "query": _dense(stream, attention),
        "key": _dense(stream, attention),
        "value": _dense(stream, attention),
        "attn_out": _dense(attention, stream),
        "ln2": norm,
        "mlp0": _dense(stream, hidden),
        "mlp1": _dense(hidden, out),
    }


def transformer_spec(blocks: int = 2) -> WeightSpec:
    """A Transformer decoder whose residual stream is one permutation throughout."""
    return WeightSpec.parse(
        {
            "embed": "vocabulary! stream",
            **{f"h{i}": _block("stream", f"attention{i}", f"hidden{i}", "stream") for i in range(blocks)},
            "ln_f": {"scale": "stream", "offset": "stream"},
            "out": _dense("stream", "vocabulary!"),
        }
    )


def released_transformer_spec(blocks: int = 2) -> WeightSpec:
    """The released code's spec of the same weights, faults included."""
    last = f"features{2 * blocks}"
    return WeightSpec.parse(
        {
            "embed": "vocabulary! features0",
            **{f"h{i}": _block(*(f"features{2 * i + j}" for j in (0, 1, 1, 2))) for i in range(blocks)},
            "ln_f": {"scale": last, "offset": last},
            "out": _dense(last, "classes!"),
        }
    )


MLP = WeightSpace("MLP", mlp_spec("pixels!", "hidden", "classes!"), sizes={"pixels": 64, "hidden": 32, "classes": 10})
MLP3 = WeightSpace("MLP, 3 layers", mlp_spec("pixels!", "hidden0", "hidden1", "classes!"))
CNN = WeightSpace(
    "CNN",
    cnn_spec("height0! width0!"),
    cnn_spec("rgb! width0!"),
    {name: 3 for name in ("height0", "width0", "rgb", "height1", "width1")} | {"channels0": 16, "channels1": 32, "classes": 10},
)
RNN = WeightSpace("RNN", rnn_spec(), sizes={"embedding": 32, "hidden": 64, "batch": 1})
TRANSFORMER = WeightSpace(
    "Transformer",
    transformer_spec(),
    released_transformer_spec(),
    {"stream": 32} | {f"{name}{i}": 128 for name in ("attention", "hidden") for i in range(2)},
)
