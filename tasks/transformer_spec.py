"""The weights of a Transformer and their symmetry, for any number of blocks.

Pre-norm blocks of single-matrix attention and a perceptron around a residual stream: all blocks read and write the same stream, so
its permutation is one for the whole network; each block has its own for the features of attention and of the perceptron. Within
attention only what keeps each head together is a symmetry; `attention` here names query, key and value features as one, as the
paper does.
"""

from lopt.symmetry.spec import WeightSpec


def transformer_spec(blocks: int) -> WeightSpec:
    """The spec of a Transformer language model: 16 tensors a block, 5 more.

    Example:
      >>> len(transformer_spec(2).paths)
      37
    """
    tree = {
        "embed": "vocabulary embed",
        "ln_f": {"scale": "embed", "offset": "embed"},
        "out": {"kernel": "embed vocabulary", "bias": "vocabulary"},
    }
    for i in range(blocks):
        projection = {"kernel": f"embed attention{i}", "bias": f"attention{i}"}
        tree[f"h{i}"] = {
            "ln1": {"scale": "embed", "offset": "embed"},
            "query": projection,
            "key": projection,
            "value": projection,
            "attn_out": {"kernel": f"attention{i} embed", "bias": "embed"},
            "ln2": {"scale": "embed", "offset": "embed"},
            "mlp0": {"kernel": f"embed hidden{i}", "bias": f"hidden{i}"},
            "mlp1": {"kernel": f"hidden{i} embed", "bias": "embed"},
        }
    return WeightSpec.parse(tree)


def transformer_sizes(blocks: int, *, width: int = 32, hidden: int = 128, vocabulary: int = 256) -> dict[str, int]:
    """The size of every name of `transformer_spec(blocks)`: by default width 32, perceptron 128, a vocabulary of bytes."""
    sizes = {"vocabulary": vocabulary, "embed": width}
    return sizes | {f"attention{i}": width for i in range(blocks)} | {f"hidden{i}": hidden for i in range(blocks)}
