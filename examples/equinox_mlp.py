"""A task whose model is an equinox module: its arrays are the params, the rest is kept aside.

python scripts/meta_train.py --config examples/config.py --task.function examples.equinox_mlp:make_task --run-dir runs/equinox
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import lopt
from lopt import Task


def make_task() -> Task:
    def make_model(key):
        return eqx.nn.MLP(in_size=64, out_size=10, width_size=16, depth=2, activation=jax.nn.gelu, key=key)

    _, static = eqx.partition(make_model(jax.random.key(0)), eqx.is_array)

    def init(key):
        return eqx.filter(make_model(key), eqx.is_array)

    def loss(params, key, batch):
        model = eqx.combine(params, static)
        logits = jax.vmap(model)(batch["image"].astype(jnp.float32) / 16)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]))

    images, labels = load_digits(return_X_y=True)
    data = {"image": images.astype(np.uint8), "label": labels.astype(np.int32)}
    return lopt.task_from_loss(init, loss, data, name="equinox_mlp", batch_size=32)
