"""Image classification by a residual network: convolutions with normalisation around a stream that each stage reads and writes.

Normalisation is by the statistics of the batch at hand, in evaluation too (`batch`), or of each example over channels and places
(`layer`, which is group normalisation with one group: several groups would tell their channels apart).

References:
  He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016.
  Ioffe, Szegedy, "Batch Normalization", ICML 2015. Wu, He, "Group Normalization", ECCV 2018.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from lopt.symmetry.spec import WeightSpec
from lopt.task import Task
from tasks.cnn import convolve
from tasks.modules import ACTIVATIONS, Activation, check_counts, lecun, pure
from tasks.settings import ImageTaskConfig, Model, Shape

PyTree = Any
Normalization = Literal["batch", "layer"]
# Axes of [C, H, W, B] that statistics are over.
_AXES: dict[Normalization, tuple[int, ...]] = {"batch": (1, 2, 3), "layer": (0, 1, 2)}
_WINDOW = 3


class _Normalized(nnx.Module):
    """Normalisation with a scale and an offset for each channel; the statistics in float32."""

    def __init__(self, channels: int, kind: Normalization):
        self.scale = nnx.Param(jnp.ones(channels, jnp.float32))
        self.offset = nnx.Param(jnp.zeros(channels, jnp.float32))
        self.axes = _AXES[kind]

    def __call__(self, x: jax.Array) -> jax.Array:
        exact = x.astype(jnp.float32)
        centered = exact - jnp.mean(exact, axis=self.axes, keepdims=True)
        unit = centered * jax.lax.rsqrt(jnp.mean(jnp.square(centered), axis=self.axes, keepdims=True) + 1e-5)
        scale, offset = (p[...][:, None, None, None] for p in (self.scale, self.offset))
        return unit.astype(x.dtype) * scale + offset


class _Convolution(nnx.Module):
    """A 3x3 convolution without a bias, as a normalisation follows."""

    def __init__(self, inputs: int, outputs: int, stride: int, init_scale: float, rngs: nnx.Rngs):
        self.kernel = nnx.Param(lecun(init_scale)(rngs.params(), (_WINDOW, _WINDOW, inputs, outputs), jnp.float32))
        self.stride = stride

    def __call__(self, x: jax.Array) -> jax.Array:
        return convolve(x, self.kernel[...], self.stride)


class _Shortcut(nnx.Module):
    """From the stream of a stage to that of the next: every second place, and another number of channels."""

    def __init__(self, inputs: int, outputs: int, init_scale: float, rngs: nnx.Rngs):
        self.kernel = nnx.Param(lecun(init_scale)(rngs.params(), (inputs, outputs), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.einsum("ihwb,io->ohwb", x[:, ::2, ::2], self.kernel[...])


class _Block(nnx.Module):
    def __init__(self, inputs: int, outputs: int, first_of_stage: bool, resnet: "_Options", rngs: nnx.Rngs):
        self.conv0 = _Convolution(inputs, outputs, 2 if first_of_stage else 1, resnet.init_scale, rngs)
        self.norm0 = _Normalized(outputs, resnet.normalization)
        self.conv1 = _Convolution(outputs, outputs, 1, resnet.init_scale, rngs)
        self.norm1 = _Normalized(outputs, resnet.normalization)
        if first_of_stage:
            self.shortcut = _Shortcut(inputs, outputs, resnet.init_scale, rngs)
        self.first_of_stage, self.activation = first_of_stage, ACTIVATIONS[resnet.activation]

    def __call__(self, x: jax.Array) -> jax.Array:
        added = self.norm1(self.conv1(self.activation(self.norm0(self.conv0(x)))))
        return self.activation((self.shortcut(x) if self.first_of_stage else x) + added)


@dataclasses.dataclass(frozen=True)
class _Options:
    normalization: Normalization
    activation: Activation
    init_scale: float


def _blocks(stages: int, blocks: int) -> list[tuple[str, int, int]]:
    """Name, stage and place in the stage of every block."""
    return [(f"stage{stage}_block{block}", stage, block) for stage in range(stages) for block in range(blocks)]


class _ResNet(nnx.Module):
    """`stem` and its `norm`, blocks `stage0_block0`, ..., the mean over places, and the linear `head`."""

    def __init__(self, colors: int, classes: int, channels: Sequence[int], blocks: int, options: _Options, rngs: nnx.Rngs):
        self.stem = _Convolution(colors, channels[0], 1, options.init_scale, rngs)
        self.norm = _Normalized(channels[0], options.normalization)
        self.names = [name for name, _, _ in _blocks(len(channels), blocks)]
        for name, stage, block in _blocks(len(channels), blocks):
            shrinks = stage > 0 and block == 0
            inputs = channels[stage - 1] if shrinks else channels[stage]
            setattr(self, name, _Block(inputs, channels[stage], shrinks, options, rngs))
        self.head = nnx.Linear(channels[-1], classes, kernel_init=lecun(options.init_scale), rngs=rngs)
        self.activation = ACTIVATIONS[options.activation]

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.activation(self.norm(self.stem(jnp.transpose(images, (3, 1, 2, 0)))))
        for name in self.names:
            x = getattr(self, name)(x)
        return self.head(jnp.mean(x, axis=(1, 2)).T)


def resnet(
    colors: int,
    classes: int,
    channels: Sequence[int],
    blocks: int,
    *,
    normalization: Normalization = "batch",
    activation: Activation = "relu",
    init_scale: float = 1.0,
) -> Model:
    """A residual network as a pair of pure functions.

    `x = act(norm(K * images))`; every block: `x <- act(S x + norm(K_1 * act(norm(K_0 * x))))`, all convolutions 3x3 with zero padding.
    S is the identity but in the first block of the second and later stages, which halve height and width: there K_0 has stride 2 and S
    is a 1x1 convolution of stride 2. `logits = W^T mean_places(x) + b`. Kernels start as LeCun's truncated normal of variance
    init_scale^2 / fan-in, scales as one, offsets and the bias as zero.

    Args:
      colors: channels of the images.
      classes: number of logits.
      channels: of each stage.
      blocks: of each stage.
      normalization: what statistics are over.
      activation: act.
      init_scale: factor on the fresh kernels.

    Returns:
      init: `init(key) -> params`, {"stem": {"kernel": [3, 3, colors, c_0]}, "norm": {"scale", "offset"}, "stage0_block0": {"conv0",
        "norm0", "conv1", "norm1"}, ..., "stage1_block0": {..., "shortcut": {"kernel": [c_0, c_1]}}, ..., "head": {"kernel", "bias"}}.
      apply: `apply(params, images [B, H, W, colors]) -> logits [B, classes]`, in the dtype of the params.

    Example:
      >>> init, apply = resnet(3, 2, (4, 5), blocks=1)
      >>> apply(init(jax.random.key(0)), jnp.zeros((7, 8, 8, 3))).shape
      (7, 2)
    """
    options = _Options(normalization, activation, init_scale)
    init, run = pure(lambda rngs: _ResNet(colors, classes, channels, blocks, options, rngs))

    def apply(params: PyTree, images: jax.Array) -> jax.Array:
        return run(params, images.astype(params["head"]["kernel"].dtype))

    return init, apply


def resnet_spec(stages: int, blocks: int) -> WeightSpec:
    """The symmetry of `resnet`: one order of channels for the stream of a stage, another for the inside of each block.

    Example:
      >>> spec = resnet_spec(2, 1)
      >>> len(spec.paths), spec.notation("stage1_block0/conv0/kernel"), spec.notation("stage1_block0/shortcut/kernel")
      (18, 'stage1_block0_h0! stage1_block0_w0! stream0 inside1_0', 'stream0 stream1')
    """

    def norm(channels: str) -> dict[str, str]:
        return {"scale": channels, "offset": channels}

    tree: dict[str, Any] = {
        "stem": {"kernel": "stem_h! stem_w! colors! stream0"},
        "norm": norm("stream0"),
        "head": {"kernel": f"stream{stages - 1} classes!", "bias": "classes!"},
    }
    for name, stage, block in _blocks(stages, blocks):
        shrinks = stage > 0 and block == 0
        inside, stream = f"inside{stage}_{block}", f"stream{stage}"
        source = f"stream{stage - 1}" if shrinks else stream
        tree[name] = {
            "conv0": {"kernel": f"{name}_h0! {name}_w0! {source} {inside}"},
            "norm0": norm(inside),
            "conv1": {"kernel": f"{name}_h1! {name}_w1! {inside} {stream}"},
            "norm1": norm(stream),
        }
        if shrinks:
            tree[name]["shortcut"] = {"kernel": f"{source} {stream}"}
    return WeightSpec.parse(tree)


@dataclasses.dataclass(frozen=True)
class ResNetConfig(ImageTaskConfig):
    """A residual network that classifies images.

    Raises:
      ValueError: naming the field that is out of range.

    Example:
      >>> task = ResNetConfig(channels=(4, 6), blocks=1).make()
      >>> task.spec.sizes(task.param_shapes())["stream1"]
      6
    """

    channels: tuple[int, ...] = (8, 16)
    """Channels of each stage, one at least; from the second on each halves height and width."""

    blocks: int = 1
    """Blocks of each stage, of two convolutions each."""

    normalization: Normalization = "batch"
    """By the statistics of the batch at hand, in evaluation too, or of each example over channels and places (`layer`)."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for a field that is out of range."""
        super().__post_init__()
        self._check_counts("blocks")
        check_counts(self._field("channels"), self.channels, fewest=1)
        if self.normalization not in get_args(Normalization):
            raise ValueError(
                f"{self._field('normalization')} must be one of {', '.join(get_args(Normalization))}, not {self.normalization!r}"
            )

    def make(self) -> Task:
        """Load the images and build the task, whose params are those of `resnet`; see `ImageTaskConfig.classifier`."""

        def model(shape: Shape, classes: int) -> Model:
            return resnet(
                shape[-1],
                classes,
                self.channels,
                self.blocks,
                normalization=self.normalization,
                activation=self.activation,
                init_scale=self.init_scale,
            )

        name = f"resnet_{self.normalization}_{self.blocks}x" + "_".join(map(str, self.channels))
        return self.classifier(name, model, resnet_spec(len(self.channels), self.blocks))
