"""A training that orbax keeps, and that goes on from there: python examples/use_orbax.py"""

import pathlib
import tempfile

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from sklearn.datasets import load_digits

import lopt


def loss(params, images, labels):
    return optax.softmax_cross_entropy_with_integer_labels(jnp.tanh(images @ params["w0"]) @ params["w1"], labels).mean()


def train(path: pathlib.Path, steps):  # in all, those before what is kept included
    images, labels = map(jnp.asarray, load_digits(return_X_y=True))
    tx, params = lopt.load("lopt-direction", learning_rate=0.03), {"w0": jnp.ones((64, 32)) / 64, "w1": jnp.eye(32, 10)}

    @jax.jit
    def step(params, state, t, images, labels):
        updates, state = tx.update(jax.grad(loss)(params, images, labels), state, params)
        return optax.apply_updates(params, updates), state, t + 1

    training = (params, tx.init(params), 0)
    with ocp.StandardCheckpointer() as checkpointer:
        training = checkpointer.restore(path, training) if path.exists() else training
        for first in (64 * (t % 28) for t in range(training[-1], steps)):
            training = step(*training, images[first : first + 64] / 16, labels[first : first + 64])
        checkpointer.save(path, training, force=True)
    return training


if __name__ == "__main__":
    path = pathlib.Path(tempfile.mkdtemp(), "training")
    print([int(train(path, steps)[-1]) for steps in (50, 100)])
