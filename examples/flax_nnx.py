"""A task whose model is a flax.nnx module: split into its graph and its weights, and merged again in the loss.

python scripts/meta_train.py --config examples/config.py --task.function examples.flax_nnx:make_task --run-dir runs/flax_nnx
"""

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import lopt
from lopt import Task


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(64, 16, rngs=rngs)
        self.head = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, images):
        return self.head(nnx.silu(self.hidden(images)))


def make_task() -> Task:
    graph, _ = nnx.split(nnx.eval_shape(lambda: Net(nnx.Rngs(0))))

    def init(key):
        return nnx.to_pure_dict(nnx.state(Net(nnx.Rngs(key)), nnx.Param))

    def loss(params, key, batch):
        logits = nnx.merge(graph, nnx.State(params))(batch["image"].astype(jnp.float32) / 16)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]))

    images, labels = load_digits(return_X_y=True)
    data = {"image": images.astype(np.uint8), "label": labels.astype(np.int32)}
    return lopt.task_from_loss(init, loss, data, name="flax_nnx", batch_size=32)
