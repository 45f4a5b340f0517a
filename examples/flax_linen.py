"""A task whose model is a flax.linen module: a residual network with layer normalisation.

python scripts/meta_train.py --config examples/config.py --task.function examples.flax_linen:make_task --run-dir runs/flax_linen
"""

import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from sklearn.datasets import load_digits

import lopt
from lopt import Task


class Net(nn.Module):
    width: int = 16

    @nn.compact
    def __call__(self, images):
        hidden = nn.Dense(self.width)(images)
        hidden = hidden + nn.Dense(self.width)(nn.gelu(nn.LayerNorm()(hidden)))
        return nn.Dense(10)(hidden)


def make_task() -> Task:
    net = Net()

    def init(key):
        return net.init(key, jnp.zeros((1, 64)))["params"]

    def loss(params, key, batch):
        logits = jnp.asarray(net.apply({"params": params}, batch["image"].astype(jnp.float32) / 16))
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]))

    images, labels = load_digits(return_X_y=True)
    data = {"image": images.astype(np.uint8), "label": labels.astype(np.int32)}
    return lopt.task_from_loss(init, loss, data, name="flax_linen", batch_size=32)
