"""A trained optimizer in flax.nnx, by nnx.Optimizer: python examples/use_flax_nnx.py"""

import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import load_digits

import lopt


def make_net(rngs):
    return nnx.Sequential(nnx.Linear(64, 32, rngs=rngs), nnx.silu, nnx.Linear(32, 10, rngs=rngs))


def loss(net, x, labels):
    return optax.softmax_cross_entropy_with_integer_labels(net(x), labels).mean()


def train(steps=100):
    images, labels = map(jnp.asarray, load_digits(return_X_y=True))
    graph, params = nnx.split(net := make_net(nnx.Rngs(0)))
    spec = lopt.infer_spec(lambda params, *batch: loss(nnx.merge(graph, params), *batch), params, images[:64], labels[:64])
    tx, losses = lopt.load("lopt-direction-unf", num_steps=steps, spec=spec), []
    optimizer = nnx.Optimizer(net, tx, wrt=nnx.Param)

    @nnx.jit
    def step(net, optimizer, *batch):
        value, grads = nnx.value_and_grad(loss)(net, *batch)
        optimizer.update(net, grads)
        return value

    for batch in (slice(64 * (t % 28), 64 * (t % 28 + 1)) for t in range(steps)):
        losses.append(float(step(net, optimizer, images[batch] / 16, labels[batch])))
    return losses


if __name__ == "__main__":
    print(train()[::10])
