"""A trained optimizer in a plain optax loop: python examples/use_plain_optax.py"""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import lopt


def loss(params, images, labels):
    hidden = jax.nn.relu(images @ params["w0"] + params["b0"])
    logits = hidden @ params["w1"] + params["b1"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train(steps=100):
    images, labels = map(jnp.asarray, load_digits(return_X_y=True))
    w0, w1 = jax.random.normal(jax.random.key(0), (64, 32)) / 8, jax.random.normal(jax.random.key(1), (32, 10)) / 6
    params = {"w0": w0, "b0": jnp.zeros(32), "w1": w1, "b1": jnp.zeros(10)}
    spec = lopt.infer_spec(loss, params, images[:64], labels[:64])  # which axes belong together, read off the loss
    tx = lopt.load("lopt-direction-unf", num_steps=steps, spec=spec)
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
