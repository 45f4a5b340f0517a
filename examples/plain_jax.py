"""A task in plain JAX: a convolutional network on the digits of scikit-learn, written out.

python scripts/meta_train.py --config examples/config.py --task.function examples.plain_jax:make_task --run-dir runs/plain_jax
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import lopt
from lopt import Task


def init(key):
    conv_key, head_key = jax.random.split(key)
    return {
        "conv": {"kernel": jax.random.normal(conv_key, (3, 3, 1, 8)) / 3, "bias": jnp.zeros(8)},
        "head": {"kernel": jax.random.normal(head_key, (8, 10)) / 8**0.5, "bias": jnp.zeros(10)},
    }


def logits(params, batch):
    images = batch["image"].astype(jnp.float32)[..., None] / 16
    hidden = jax.lax.conv_general_dilated(
        images, params["conv"]["kernel"], window_strides=(1, 1), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    hidden = jax.nn.relu(hidden + params["conv"]["bias"][None, None, None])
    return jnp.mean(hidden, axis=(1, 2)) @ params["head"]["kernel"] + params["head"]["bias"][None]


def loss(params, key, batch):
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits(params, batch), batch["label"]))


def metrics(params, key, batch):
    correct = jnp.argmax(logits(params, batch), axis=-1) == batch["label"]
    return {"accuracy": jnp.mean(correct.astype(jnp.float32))}


def make_task() -> Task:
    images, labels = load_digits(return_X_y=True)
    data = {"image": images.reshape(-1, 8, 8).astype(np.uint8), "label": labels.astype(np.int32)}
    return lopt.task_from_loss(init, loss, data, name="plain_jax", metrics=metrics, batch_size=32)
