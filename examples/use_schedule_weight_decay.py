"""A schedule and weight decay for a trained optimizer, as for optax.adamw: python examples/use_schedule_weight_decay.py

It gives a direction; the rate is yours, a number or a schedule, and the weights decay by it.
"""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import lopt


def loss(params, images, labels):
    logits = jnp.tanh(images @ params["w0"]) @ params["w1"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train(steps=100, decay=0.1):
    images, labels = map(jnp.asarray, load_digits(return_X_y=True))
    params = {"w0": jax.random.normal(jax.random.key(0), (64, 32)) / 8, "w1": jnp.zeros((32, 10))}
    schedule = optax.warmup_cosine_decay_schedule(0.0, 0.03, steps // 10, steps)
    tx = lopt.load("lopt-direction", learning_rate=schedule, weight_decay=decay)
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
