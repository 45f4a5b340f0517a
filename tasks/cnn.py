"""Image classification by a convolutional network: the paper's second task.

Two 3x3 convolutions of 16 and 32 channels, ReLU, the mean over all places, a linear layer, on 16x16 CIFAR-10 in the paper (Zhou,
Finn, Harrison, NeurIPS 2024, section 4.1). The paper does not state strides; here the first convolution has stride 2 and the others
stride 1, with zero padding, as in the convolutional tasks of `learned_optimization`, on which the paper's code builds.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lopt.symmetry.spec import WeightSpec
from lopt.task import Task
from tasks.modules import ACTIVATIONS, Activation, check_counts, lecun, pure
from tasks.settings import ImageTaskConfig, Model, Shape

PyTree = Any


def convolve(images: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """A convolution with zero padding: [c_in, H, W, B] and [k, k, c_in, c_out] to [c_out, ceil(H / stride), ceil(W / stride), B].

    The one place that says how convolutions are computed: every place's window is laid out, and all windows take one matrix product.
    In a loop on a CPU, or with kernels of many particles, that is several times faster than XLA's convolution and its gradients
    (digits, 2 cores: 3.3 instead of 33 ms an inner step), for k^2 times the memory of the images. Channels first and examples last,
    the windows are cut out in long rows, and the product has long rows too: once more up to twice as fast.
    """
    window = kernel.shape[0]
    places = [-(-size // stride) for size in images.shape[1:3]]
    missing = [max((count - 1) * stride + window - size, 0) for count, size in zip(places, images.shape[1:3], strict=True)]
    padded = jnp.pad(images, ((0, 0), *((total // 2, total - total // 2) for total in missing), (0, 0)))
    last_row, last_column = ((count - 1) * stride + 1 for count in places)
    windows = [
        padded[:, row : row + last_row : stride, column : column + last_column : stride]
        for row, column in itertools.product(range(window), repeat=2)
    ]
    columns = math.prod(places) * images.shape[3]
    rows = jnp.concatenate([jnp.reshape(x, (images.shape[0], columns)) for x in windows])
    flat = jnp.reshape(kernel, (len(rows), kernel.shape[3]))
    return jnp.reshape(flat.T @ rows, (kernel.shape[3], *places, images.shape[3]))


class _Convolution(nnx.Module):
    def __init__(self, inputs: int, outputs: int, window: int, stride: int, init_scale: float, rngs: nnx.Rngs):
        self.kernel = nnx.Param(lecun(init_scale)(rngs.params(), (window, window, inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(outputs, jnp.float32))
        self.stride = stride

    def __call__(self, images: jax.Array) -> jax.Array:
        return convolve(images, self.kernel[...], self.stride) + self.bias[...][:, None, None, None]


class _CNN(nnx.Module):
    """Convolutions `conv0`, `conv1`, ..., the mean over places, and the linear `head`."""

    def __init__(
        self, channels: Sequence[int], classes: int, window: int, stride: int, activation: str, init_scale: float, rngs: nnx.Rngs
    ):
        for index, (inputs, outputs) in enumerate(itertools.pairwise(channels)):
            layer = _Convolution(inputs, outputs, window, stride if index == 0 else 1, init_scale, rngs)
            setattr(self, f"conv{index}", layer)
        self.head = nnx.Linear(channels[-1], classes, kernel_init=lecun(init_scale), rngs=rngs)
        self.depth = len(channels) - 1
        self.activation = ACTIVATIONS[activation]

    def __call__(self, images: jax.Array) -> jax.Array:
        images = jnp.transpose(images, (3, 1, 2, 0))
        for index in range(self.depth):
            images = self.activation(getattr(self, f"conv{index}")(images))
        return self.head(jnp.mean(images, axis=(1, 2)).T)


def cnn(
    channels: Sequence[int],
    classes: int,
    *,
    window: int = 3,
    stride: int = 2,
    activation: Activation = "relu",
    init_scale: float = 1.0,
) -> tuple[Callable[[jax.Array], PyTree], Callable[[PyTree, jax.Array], jax.Array]]:
    """A convolutional network as a pair of pure functions.

    `x_0 = images`, `x_{l+1} = act(K_l * x_l + b_l)`, `logits = W^T mean_places(x_L) + b`. Kernels start as LeCun's truncated
    normal of variance init_scale^2 / fan-in, biases as zero.

    Args:
      channels: of the images, then of each convolution, c_0 ... c_L.
      classes: number of logits.
      window: height and width k of the kernels, in pixels.
      stride: of the first convolution; the others have stride 1. All pad with zeros.
      activation: after every convolution.
      init_scale: factor on the fresh kernels.

    Returns:
      init: `init(key) -> params`, {"conv0": {"kernel": [k, k, c_0, c_1], "bias": [c_1]}, ..., "head": {"kernel", "bias"}}, float32.
      apply: `apply(params, images [B, H, W, c_0]) -> logits [B, classes]`, in the dtype of the params.

    Example:
      >>> init, apply = cnn((3, 4, 5), classes=2)
      >>> apply(init(jax.random.key(0)), jnp.zeros((7, 16, 16, 3))).shape
      (7, 2)
    """
    init, run = pure(lambda rngs: _CNN(channels, classes, window, stride, activation, init_scale, rngs))

    def apply(params: PyTree, images: jax.Array) -> jax.Array:
        return run(params, images.astype(params["head"]["kernel"].dtype))

    return init, apply


def cnn_spec(num_convolutions: int) -> WeightSpec:
    """The symmetry of `cnn`: the channels of every convolution may be reordered; colors, places in the windows and classes may not.

    Example:
      >>> print(cnn_spec(2))
      conv0/bias    channels0
      conv0/kernel  height0! width0! colors! channels0
      conv1/bias    channels1
      conv1/kernel  height1! width1! channels0 channels1
      head/bias     classes!
      head/kernel   channels1 classes!
    """
    channels = ["colors!", *(f"channels{index}" for index in range(num_convolutions))]
    tree = {
        f"conv{index}": {"kernel": f"height{index}! width{index}! {inputs} {outputs}", "bias": outputs}
        for index, (inputs, outputs) in enumerate(itertools.pairwise(channels))
    }
    return WeightSpec.parse(tree | {"head": {"kernel": f"{channels[-1]} classes!", "bias": "classes!"}})


@dataclasses.dataclass(frozen=True)
class CNNConfig(ImageTaskConfig):
    """A convolutional network that classifies images.

    Raises:
      ValueError: naming the field that is out of range.

    Example:
      >>> task = CNNConfig(channels=(4, 6)).make()
      >>> task.spec.sizes(task.param_shapes())["channels1"]
      6
    """

    channels: tuple[int, ...] = (16, 32)
    """Channels of each convolution, one at least (the paper: 16 32)."""

    window: int = 3
    """Height and width of the convolutions' kernels in pixels."""

    stride: int = 2
    """Stride of the first convolution; the others have stride 1."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for a field that is out of range."""
        super().__post_init__()
        self._check_counts("window", "stride")
        check_counts(self._field("channels"), self.channels, fewest=1)

    def make(self) -> Task:
        """Load the images and build the task, whose params are those of `cnn`; see `ImageTaskConfig.classifier`."""

        def model(shape: Shape, classes: int) -> Model:
            return cnn(
                (shape[-1], *self.channels),
                classes,
                window=self.window,
                stride=self.stride,
                activation=self.activation,
                init_scale=self.init_scale,
            )

        return self.classifier("cnn" + "".join(f"_{channels}" for channels in self.channels), model, cnn_spec(len(self.channels)))
