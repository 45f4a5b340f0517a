"""A schedule and weight decay behind a trained optimizer: python examples/use_schedule_weight_decay.py

Its updates are whole steps, and it sets their size itself: weight decay is told to it, and a schedule that follows goes down from 1.
"""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import lopt


def loss(params, images, labels):
    logits = jnp.tanh(images @ params["w0"]) @ params["w1"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train(steps=100, decay=1e-3):
    images, labels = map(jnp.asarray, load_digits(return_X_y=True))
    params = {"w0": jax.random.normal(jax.random.key(0), (64, 32)) / 8, "w1": jnp.zeros((32, 10))}
    learned, schedule = lopt.load("small-mixture-deep-sets", weight_decay=decay), optax.cosine_decay_schedule(1.0, steps)
    tx = optax.chain(learned, optax.scale_by_schedule(schedule))
    state, losses = tx.init(params), []

    @jax.jit
    def step(params, state, images, labels):
        value, grads = jax.value_and_grad(loss)(params, images, labels)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    for first in (64 * (t % 28) for t in range(steps)):
        params, state, value = step(params, state, images[first : first + 64] / 16, labels[first : first + 64])
        losses.append(float(value))
    return losses, params


if __name__ == "__main__":
    print(train()[0][::10])
