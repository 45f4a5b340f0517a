"""Gradients of four batches gathered for one step of a trained optimizer: python examples/use_multi_steps.py"""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import lopt


def loss(params, images, labels):
    logits = jnp.tanh(images @ params["w0"]) @ params["w1"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train(steps=100, gathered=4):
    (images, labels), size = map(jnp.asarray, load_digits(return_X_y=True)), 64 // gathered
    params = {"w0": jax.random.normal(jax.random.key(0), (64, 32)) / 8, "w1": jnp.zeros((32, 10))}
    learned = lopt.load("lopt-direction", num_steps=steps)  # its clock counts whole steps
    tx = optax.MultiSteps(learned, every_k_schedule=gathered)
    state, losses = tx.init(params), []

    @jax.jit
    def step(params, state, images, labels):
        value, grads = jax.value_and_grad(loss)(params, images, labels)
        updates, state = tx.update(grads, state, params)  # zeros, but for every fourth
        return optax.apply_updates(params, updates), state, value

    for t in range(steps * gathered):
        first = (t * size) % 1792
        params, state, value = step(params, state, images[first : first + size] / 16, labels[first : first + size])
        losses.append(float(value))
    return losses, params


if __name__ == "__main__":
    print(train()[0][::40])
