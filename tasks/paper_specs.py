"""The weight spaces of the paper's four tasks: as our tasks have them, and as the paper's released code describes them.

They are here to reproduce the parameter counts that "Universal Neural Functionals" (Zhou, Finn, Harrison, NeurIPS 2024) prints.
Two of the released specs are wrong:

- CNN: the kernel-height axis of the first convolution carries the permutation of its input channels. Both have size three, so
  nothing complains; the layer has 144 terms instead of 86, those in excess without a meaning.
- Transformer: the permutations are numbered as in a chain of layers. Block i reads features 2i and writes features 2i + 2, so the
  residual stream is untied between blocks although the network adds across them: terms are lost. The features of queries, keys
  and values share 2i + 1 with the hidden layer of the block's MLP, as both have 4 * 32 units: this adds terms that do not commute
  with the true permutations. The vocabulary of the embedding is not that of the head: more terms are lost.

Both versions of the Transformer have one axis for the heads and the width within a head, as the paper counts them; the spec of the
task, which is true of attention with several heads, tells them apart. Axes of data are marked as fixed, though the paper's layers
treat them as permutable: `relax` the specs.
"""

import dataclasses
from collections.abc import Mapping

from lopt.symmetry.notation import map_factors
from lopt.symmetry.spec import Factor, PyTree, WeightSpec
from tasks.cnn import cnn_spec
from tasks.mlp import mlp_spec
from tasks.rnn import rnn_spec
from tasks.transformer import transformer_spec


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


def renamed(spec: WeightSpec, **names: str) -> WeightSpec:
    """The spec with other names, `old=new`; a name that is there already ties the two.

    Example:
      >>> print(renamed(mlp_spec(1), pixels="units", classes="units"))
      dense0/bias    hidden0
      dense0/kernel  units! hidden0
      dense1/bias    units!
      dense1/kernel  hidden0 units!
    """

    def rename(factor: Factor) -> Factor:
        return dataclasses.replace(factor, name=names.get(factor.name, factor.name))

    leaves = tuple((path, tuple(map_factors(axis, rename) for axis in axes)) for path, axes in spec.leaves)
    return dataclasses.replace(spec, leaves=leaves)


def _dense(inputs: str, outputs: str) -> PyTree:
    return {"kernel": f"{inputs} {outputs}", "bias": outputs}


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


MLP = WeightSpace("MLP", mlp_spec(1), sizes={"pixels": 64, "hidden0": 32, "classes": 10})
MLP3 = WeightSpace("MLP, 3 layers", mlp_spec(2))
CNN = WeightSpace(
    "CNN",
    cnn_spec(2),
    renamed(cnn_spec(2), height0="colors"),
    {name: 3 for name in ("height0", "width0", "colors", "height1", "width1")}
    | {"channels0": 16, "channels1": 32, "classes": 10},
)
RNN = WeightSpace("RNN", rnn_spec(), sizes={"embedding": 32, "hidden": 64, "batch": 1})
TRANSFORMER = WeightSpace(
    "Transformer",
    transformer_spec(2),
    released_transformer_spec(),
    {"embed": 32} | {f"{name}{i}": 128 for name in ("attention", "hidden") for i in range(2)},
)
HEADS = WeightSpace("Transformer, by head", transformer_spec(2, heads=4))
