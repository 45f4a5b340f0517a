"""A training script, changed in two lines; each says what it was. Its update must be given params: python examples/use_two_lines.py"""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import lopt  # was:


def loss(params, images, labels):
    logits = jnp.tanh(images @ params["w0"]) @ params["w1"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train(steps=100):
    images, labels = map(jnp.asarray, load_digits(return_X_y=True))
    w0, w1 = jax.random.normal(jax.random.key(0), (64, 32)) / 8, jax.random.normal(jax.random.key(1), (32, 10)) / 6
    params = {"w0": w0, "w1": w1}
    tx = lopt.load("lopt-direction", num_steps=steps)  # was: tx = optax.adam(1e-3)
    state, losses = tx.init(params), []

    @jax.jit
    def step(params, state, images, labels):
        value, grads = jax.value_and_grad(loss)(params, images, labels)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    for t in range(steps):
        batch = slice(64 * (t % 28), 64 * (t % 28 + 1))
        params, state, value = step(params, state, images[batch] / 16, labels[batch])
        losses.append(float(value))
    return losses


if __name__ == "__main__":
    print(train()[::10])
