"""Images written with a few numbers and read back: an autoencoder of dense layers, plain or variational.

References:
  Kingma, Welling, "Auto-Encoding Variational Bayes", ICLR 2014.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lopt.symmetry.spec import WeightSpec
from lopt.task import Batch, Task
from tasks.datasets import load_images
from tasks.modules import ACTIVATIONS, Activation, check_counts, lecun, short_name
from tasks.settings import ImageTaskConfig, image_shape, pixels

PyTree = Any
Apply = Callable[[PyTree, jax.Array, jax.Array | None], tuple[jax.Array, jax.Array]]


def autoencoder(
    inputs: int,
    hidden: Sequence[int],
    latent: int,
    *,
    variational: bool = False,
    activation: Activation = "relu",
    init_scale: float = 1.0,
) -> tuple[Callable[[jax.Array], PyTree], Apply]:
    """An autoencoder as a pair of pure functions.

    The encoder's hidden layers lead to the latent numbers `z = W^T h + b`, the decoder's, of the same sizes in reverse, from them to a
    logit for each pixel. A variational one has a second linear layer for their log-variances s, and `z = mu + exp(s / 2) noise`.
    Kernels start as LeCun's truncated normal of variance init_scale^2 / fan-in, biases as zero.

    Args:
      inputs: pixels N of an image.
      hidden: units of each hidden layer of the encoder; none: it is linear.
      latent: L.
      variational: whether there are log-variances.
      activation: of the hidden layers.
      init_scale: factor on the fresh kernels.

    Returns:
      init: `init(key) -> params`, {"encoder0", ..., "latent", "decoder0", ..., "pixels": {"kernel", "bias"}} and, if variational,
        "log_variance", float32.
      apply: `apply(params, x [B, N], noise [B, L] or None) -> (logits [B, N], divergence [B])`: the second is
        `KL(N(mu, e^s) | N(0, 1)) = sum (e^s + mu^2 - 1 - s) / 2`, zero where nothing is variational.

    Example:
      >>> init, apply = autoencoder(12, (8,), 3)
      >>> apply(init(jax.random.key(0)), jnp.zeros((5, 12)), None)[0].shape
      (5, 12)
    """
    act = ACTIVATIONS[activation]
    encoder, decoder = [inputs, *hidden], [latent, *reversed(hidden)]
    layers = {f"encoder{i}": sizes for i, sizes in enumerate(itertools.pairwise(encoder))}
    layers["latent"] = (encoder[-1], latent)
    if variational:
        layers["log_variance"] = (encoder[-1], latent)
    layers |= {f"decoder{i}": sizes for i, sizes in enumerate(itertools.pairwise(decoder))}
    layers["pixels"] = (decoder[-1], inputs)

    def init(key: jax.Array) -> PyTree:
        keys = jax.random.split(key, len(layers))
        return {
            name: {"kernel": lecun(init_scale)(keys[i], sizes, jnp.float32), "bias": jnp.zeros(sizes[1], jnp.float32)}
            for i, (name, sizes) in enumerate(layers.items())
        }

    def apply(params: PyTree, x: jax.Array, noise: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        def dense(name: str, h: jax.Array) -> jax.Array:
            return h @ params[name]["kernel"] + params[name]["bias"][None]

        h = x.astype(params["pixels"]["kernel"].dtype)
        for i in range(len(hidden)):
            h = act(dense(f"encoder{i}", h))
        z, divergence = dense("latent", h), jnp.zeros(len(x), jnp.float32)
        if variational:
            assert noise is not None
            mean, log_variance = z.astype(jnp.float32), dense("log_variance", h).astype(jnp.float32)
            divergence = 0.5 * jnp.sum(jnp.exp(log_variance) + mean**2 - 1 - log_variance, axis=1)
            z = (mean + jnp.exp(log_variance / 2) * noise).astype(z.dtype)
        for i in range(len(hidden)):
            z = act(dense(f"decoder{i}", z))
        return dense("pixels", z).astype(jnp.float32), divergence

    return init, apply


def autoencoder_spec(num_hidden: int, *, variational: bool = False) -> WeightSpec:
    """The symmetry of `autoencoder`: hidden units and latent numbers may be reordered, pixels may not.

    The latent numbers of a variational one may be reordered as their noise is, which leaves the loss the same in distribution.

    Example:
      >>> print(autoencoder_spec(0))
      latent/bias    latent
      latent/kernel  pixels! latent
      pixels/bias    pixels!
      pixels/kernel  latent pixels!
    """
    encoder = ["pixels!", *(f"encoder{i}" for i in range(num_hidden))]
    decoder = ["latent", *(f"decoder{i}" for i in range(num_hidden))]
    tree = {f"encoder{i}": axes for i, axes in enumerate(itertools.pairwise(encoder))}
    tree |= dict.fromkeys(("latent", "log_variance") if variational else ("latent",), (encoder[-1], "latent"))
    tree |= {f"decoder{i}": axes for i, axes in enumerate(itertools.pairwise(decoder))}
    tree["pixels"] = (decoder[-1], "pixels!")
    return WeightSpec.parse({name: {"kernel": f"{rows} {columns}", "bias": columns} for name, (rows, columns) in tree.items()})


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig(ImageTaskConfig):
    """An autoencoder of images, plain or variational.

    Raises:
      ValueError: naming the field that is out of range.

    Example:
      >>> task = AutoencoderConfig(latent=3).make()
      >>> task.spec.sizes(task.param_shapes())
      {'decoder0': 32, 'encoder0': 32, 'latent': 3, 'pixels': 64}
    """

    hidden: tuple[int, ...] = (32,)
    """Units of each hidden layer of the encoder; the decoder has them in reverse. None: both are linear."""

    latent: int = 8
    """Numbers that an image is written with."""

    variational: bool = False
    """The latent numbers are drawn, and their divergence from a standard normal is part of the loss."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for a field that is out of range."""
        super().__post_init__()
        self._check_counts("latent")
        check_counts(self._field("hidden"), self.hidden)

    def make(self) -> Task:
        """Load the images and build the task.

        Returns:
          A `Task` whose params are those of `autoencoder`. The loss, in nats a pixel, is the mean cross entropy of the pixels, taken as
          probabilities, and, if variational, the divergence over the number of pixels. The metrics are "squared_error" of the pixels
          and, if variational, "divergence" in nats an image.

        Raises:
          DatasetError: if the images cannot be found or read.
        """
        datasets, info = load_images(self.dataset, self.image_size, self.batch_size, self.data_dir, self.split_seed)
        shape = image_shape(info.image_shape)
        count = math.prod(shape)
        init, apply = autoencoder(
            count,
            self.hidden,
            self.latent,
            variational=self.variational,
            activation=self.activation,
            init_scale=self.init_scale,
        )

        def run(params: PyTree, key: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
            x = jnp.reshape(pixels(batch, shape, info.scale), (-1, count))
            noise = jax.random.normal(key, (len(x), self.latent)) if self.variational else None
            return x, *apply(params, x, noise)

        def loss(params: PyTree, key: jax.Array, batch: Batch) -> jax.Array:
            x, logits, divergence = run(params, key, batch)
            return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, x)) + jnp.mean(divergence) / count

        def metrics(params: PyTree, key: jax.Array, batch: Batch) -> dict[str, jax.Array]:
            x, logits, divergence = run(params, key, batch)
            found = {"squared_error": jnp.mean((jax.nn.sigmoid(logits) - x) ** 2)}
            return found | ({"divergence": jnp.mean(divergence)} if self.variational else {})

        kind = "vae" if self.variational else "autoencoder"
        return Task(
            name=f"{short_name(info.name)}{self.image_size}_{kind}" + "".join(f"_{n}" for n in (*self.hidden, self.latent)),
            init=init,
            loss=loss,
            metrics=metrics,
            spec=autoencoder_spec(len(self.hidden), variational=self.variational),
            datasets=datasets,
            initial_loss=math.log(2),
        )
