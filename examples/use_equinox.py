"""A trained optimizer in equinox: python examples/use_equinox.py"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import lopt


def loss(model, images, labels):
    return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(images), labels).mean()


def train(steps=100):
    images, labels = map(jnp.asarray, load_digits(return_X_y=True))
    model = eqx.nn.MLP(in_size=64, out_size=10, width_size=32, depth=2, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_array)
    spec = lopt.infer_spec(lambda params, *batch: loss(eqx.combine(params, static), *batch), params, images[:64], labels[:64])
    tx = lopt.load("lopt-direction-unf", num_steps=steps, spec=spec)
    state, losses = tx.init(params), []

    @eqx.filter_jit
    def step(model, state, images, labels):
        value, grads = eqx.filter_value_and_grad(loss)(model, images, labels)
        updates, state = tx.update(grads, state, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), state, value

    for t in range(steps):
        batch = slice(64 * (t % 28), 64 * (t % 28 + 1))
        model, state, value = step(model, state, images[batch] / 16, labels[batch])
        losses.append(float(value))
    return losses


if __name__ == "__main__":
    print(train()[::10])
