"""Image classification by a Transformer on patches: every patch attends to all, and the mean over patches is classified.

References:
  Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", ICLR 2021.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lopt.symmetry.spec import WeightSpec
from lopt.task import Task
from tasks.modules import Activation, lecun, pure
from tasks.settings import ImageTaskConfig, Model, Shape
from tasks.transformer import NORM_SPEC, Block, Norm, Sizes, blocks_spec, head_sizes

PyTree = Any


def patches(images: jax.Array, size: int) -> jax.Array:
    """Images [B, H, W, C] as rows of patches, [B, (H / size) (W / size), size^2 C].

    Example:
      >>> patches(jnp.arange(16).reshape(1, 4, 4, 1), 2)[0, 1].tolist()
      [2, 3, 6, 7]
    """
    batch, height, width, colors = images.shape
    cut = jnp.reshape(images, (batch, height // size, size, width // size, size, colors))
    return jnp.reshape(jnp.swapaxes(cut, 2, 3), (batch, -1, size * size * colors))


class _ViT(nnx.Module):
    """`patch`, `positions`, blocks `h0`, `h1`, ..., the final normalisation `ln_f`, and the linear `head`."""

    def __init__(self, pixels: int, places: int, classes: int, sizes: Sizes, activation: str, init_scale: float, rngs: nnx.Rngs):
        self.patch = nnx.Linear(pixels, sizes.width, kernel_init=lecun(init_scale), rngs=rngs)
        draw_positions = jax.nn.initializers.truncated_normal(0.1 * init_scale)
        self.positions = nnx.Param(draw_positions(rngs.params(), (places, sizes.width), jnp.float32))
        for index in range(sizes.blocks):
            setattr(self, f"h{index}", Block(sizes, activation, init_scale, rngs, causal=False))
        self.ln_f = Norm(sizes.width)
        self.head = nnx.Linear(sizes.width, classes, kernel_init=lecun(init_scale), rngs=rngs)
        self.blocks = sizes.blocks

    def __call__(self, patches: jax.Array) -> jax.Array:
        stream = self.patch(patches) + self.positions[...][None]
        for index in range(self.blocks):
            stream = getattr(self, f"h{index}")(stream)
        return self.head(jnp.mean(self.ln_f(stream), axis=1))


def vit(shape: Shape, patch: int, sizes: Sizes, *, activation: Activation = "gelu", init_scale: float = 1.0) -> Model:
    """A vision Transformer as a pair of pure functions.

    `x = W^T patches + b + P`, the blocks of `tasks.transformer.transformer` without their causal mask, then
    `logits = V^T mean_places(norm(x)) + d`. P starts as truncated normal of deviation 0.1 init_scale, W and V as LeCun's truncated
    normal of variance init_scale^2 / fan-in.

    Args:
      shape: of an image.
      patch: height and width of a patch, divisors of the image's.
      sizes: of the Transformer; its vocabulary is the number of classes.
      activation: of the perceptrons.
      init_scale: factor on all that starts at random.

    Returns:
      init: `init(key) -> params`, {"patch": {"kernel", "bias"}, "positions": [places, width], "h0", ..., "ln_f", "head"}, float32.
      apply: `apply(params, images [B, H, W, C]) -> logits [B, classes]`, in the dtype of the params.

    Example:
      >>> init, apply = vit((8, 8, 1), 4, Sizes(vocabulary=3, width=4, heads=2, head_width=3, mlp=6))
      >>> apply(init(jax.random.key(0)), jnp.zeros((5, 8, 8, 1))).shape
      (5, 3)
    """
    height, width, colors = shape
    places, pixels = (height // patch) * (width // patch), patch * patch * colors
    init, run = pure(lambda rngs: _ViT(pixels, places, sizes.vocabulary, sizes, activation, init_scale, rngs))

    def apply(params: PyTree, images: jax.Array) -> jax.Array:
        return run(params, patches(images, patch).astype(params["head"]["kernel"].dtype))

    return init, apply


def vit_spec(blocks: int, heads: int | None = None) -> WeightSpec:
    """The symmetry of `vit`: that of the blocks, with the order of pixels, places and classes fixed.

    Args:
      blocks: number of blocks.
      heads: as of `tasks.transformer.transformer_spec`.

    Example:
      >>> spec = vit_spec(1, heads=4)
      >>> len(spec.paths), spec.notation("positions"), spec.notation("h0/query/kernel")
      (23, 'places! embed', 'embed (heads0 qk0@heads0)')
    """
    tree: dict[str, Any] = {
        "patch": {"kernel": "pixels! embed", "bias": "embed"},
        "positions": "places! embed",
        "ln_f": NORM_SPEC,
        "head": {"kernel": "embed classes!", "bias": "classes!"},
    }
    return WeightSpec.parse(tree | blocks_spec(blocks, heads), **head_sizes(blocks, heads))


@dataclasses.dataclass(frozen=True)
class ViTConfig(ImageTaskConfig):
    """A Transformer on patches that classifies images.

    Raises:
      ValueError: naming the field that is out of range.

    Example:
      >>> task = ViTConfig(blocks=1, width=8).make()
      >>> task.spec.sizes(task.param_shapes())["places"]
      16
    """

    patch: int = 2
    """Height and width of a patch in pixels, a divisor of image_size."""

    blocks: int = 2
    """Number of blocks."""

    width: int = 32
    """Features of the residual stream."""

    heads: int = 4
    """Attention heads of each block."""

    head_width: int = 8
    """Features of each head."""

    mlp: int = 64
    """Hidden units of each block's perceptron."""

    activation: Activation = "gelu"
    """Of the perceptrons."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for a field that is out of range."""
        super().__post_init__()
        self._check_counts("patch", "blocks", "width", "heads", "head_width", "mlp")
        if self.image_size % self.patch:
            raise ValueError(f"{self._field('patch')} must divide image_size {self.image_size}, not {self.patch}")

    def make(self) -> Task:
        """Load the images and build the task, whose params are those of `vit`; see `ImageTaskConfig.classifier`."""

        def model(shape: Shape, classes: int) -> Model:
            sizes = Sizes(classes, self.blocks, self.width, self.heads, self.head_width, self.mlp)
            return vit(shape, self.patch, sizes, activation=self.activation, init_scale=self.init_scale)

        spec = vit_spec(self.blocks, self.heads if self.head_width > 1 else None)
        return self.classifier(f"vit_{self.blocks}x{self.width}", model, spec)
