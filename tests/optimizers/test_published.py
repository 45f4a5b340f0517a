"""small_fc and Celo2 against programs in NumPy that share no code with ours, written from the published descriptions.

small_fc: Metz et al., "Practical tradeoffs between memory, compute, and performance in learned optimizers" (CoLLAs 2022).
Celo2: arXiv 2602.19142; it leaves vectors to AdamW. Here they are moved by the network, as `lopt.optimizers.published` says: normalised
over all of the tensor, and not orthogonalised.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.features.presets import AdafactorFeatures, Celo2Features
from lopt.networks.update import DeepSetsConfig
from lopt.optimizers.config import LearnedOptimizerConfig
from lopt.optimizers.direction import DirectionRule
from lopt.optimizers.magnitude import MagnitudeRule
from lopt.optimizers.nominals import NoNominal
from lopt.symmetry.spec import WeightSpec

SHAPES = {"matrix": (6, 5), "vector": (5,), "rank3": (7, 5, 2), "tall": (14, 4), "square": (4, 4), "scalar": ()}
DECAYS = (0.9, 0.99, 0.999)
TIMES = [1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5]


def largest_axes(shape):
    """(second largest, largest); later axes count as larger among equals."""
    order = sorted(range(len(shape)), key=lambda axis: (shape[axis], axis))
    return order[-2], order[-1]


def mlp(theta, x, layers):
    for i in range(layers):
        layer = theta["pointwise"][f"dense{i}"]
        x = np.maximum(x @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"], np.float64), 0)
    return x @ np.asarray(theta["last"]["kernel"], np.float64) + np.asarray(theta["last"]["bias"], np.float64)


class Published:
    """Accumulators of one tensor, and the features that both publications make of them."""

    def __init__(self, shape, v_decay):
        self.shape, self.v_decay = shape, v_decay
        self.m, self.v = np.zeros((3, *shape)), np.zeros(shape)
        self.row, self.col, self.diagonal = [0.0] * 3, [0.0] * 3, np.zeros((3, *shape))

    def features(self, w, g, *, celo):
        self.v = self.v_decay * self.v + (1 - self.v_decay) * g**2
        for i, d in enumerate(DECAYS):
            self.m[i] = d * self.m[i] + (1 - d) * g
        inverse = 1 / np.sqrt(self.v + (1e-8 if celo else 1e-6))
        factored, rows, columns, momenta = [], [], [], []
        for i, d in enumerate(DECAYS):
            squared = g**2 + 1e-30
            if len(self.shape) >= 2:
                a, b = largest_axes(self.shape)
                self.row[i] = d * self.row[i] + (1 - d) * squared.mean(axis=b, keepdims=True)
                self.col[i] = d * self.col[i] + (1 - d) * squared.mean(axis=a, keepdims=True)
                row, column = self.row[i], self.col[i]
                relative = row / (row.mean(axis=a, keepdims=True) + 1e-9)
                scale = 1 / np.sqrt(np.maximum(relative, 1e-9)) / np.sqrt(np.maximum(column, 1e-9))
                factored.append(g * scale)
                momenta.append(self.m[i] * scale)
            else:
                self.diagonal[i] = d * self.diagonal[i] + (1 - d) * squared
                row = column = self.diagonal[i]
                factored.append(g / np.sqrt(np.maximum(row + 1e-9, 1e-9)))
                momenta.append(self.m[i] / np.sqrt(row + 1e-6))
            rows.append(np.broadcast_to(row, self.shape))
            columns.append(np.broadcast_to(column, self.shape))
        first = [g, np.clip(g, -0.1, 0.1), w] if celo else [g, w]
        found = [*first, *self.m, self.v, *(m * inverse for m in self.m), inverse, *factored]
        found += [g * inverse] if celo else []
        found += [*rows, *columns, *(1 / np.sqrt(r + 1e-8) for r in rows), *(1 / np.sqrt(c + 1e-8) for c in columns), *momenta]
        return np.stack(found, axis=-1)


def normalised(x, axes, eps):
    return x / np.sqrt((x**2).mean(axis=axes, keepdims=True) + eps)


def network_loss(params, x):
    """Of a small network with weights of every rank: a layer with biases, seven narrow ones side by side, two more, and a gain."""
    h = jnp.tanh(x @ params["matrix"] + params["vector"][None])
    h = jnp.tanh(jnp.einsum("bi,nij->bnj", h, params["rank3"])).reshape(len(x), 14)
    h = jnp.tanh(h @ params["tall"]) @ params["square"]
    return jnp.mean(jnp.square(params["scalar"] * h - jnp.sin(3 * x[:, :4])))


def inner_training(tx):
    """Three steps on the gradients of a network: weights before each, gradients, updates."""
    params = {path: 0.5 * jax.random.normal(jax.random.key(i), shape) for i, (path, shape) in enumerate(SHAPES.items())}
    x = jax.random.normal(jax.random.key(9), (16, 6))

    @jax.jit
    def step(state, params):
        grads = jax.grad(network_loss)(params, x)
        updates, state = tx.update(grads, state, params)
        return grads, updates, state, jax.tree.map(jnp.add, params, updates)

    state, seen = tx.init(params), []
    for _ in range(3):
        grads, updates, state, after = step(state, params)
        seen.append(jax.tree.map(lambda x: np.asarray(x, np.float64), (params, grads, updates)))
        params = after
    return seen


def assert_close(found, expected, path, tolerance=2e-6):
    """To a part of the largest entry; what is orthogonalised in float32 is good to one digit less."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.max(np.abs(expected)), err_msg=path)


def make(config):
    spec = WeightSpec.parse({path: " ".join(f"{path}{i}!" for i in range(len(shape))) for path, shape in SHAPES.items()})
    optimizer = config.make(spec)
    theta = optimizer.init(jax.random.key(7))
    theta["network"] = jax.tree.map(
        lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape), theta["network"]
    )
    return optimizer, theta


def test_small_fc():
    optimizer, theta = make(LearnedOptimizerConfig(MagnitudeRule(), AdafactorFeatures(), DeepSetsConfig((4, 4))))
    assert (
        sum(x.size for x in jax.tree.leaves(theta)) == 39 * 4 + 4 + 4 * 4 + 4 + 4 * 2 + 2 == 190
    )  # its 7 learned decays, which are fixed here, make the published 197
    kept = {path: Published(shape, 0.999) for path, shape in SHAPES.items()}
    for step, (params, grads, updates) in enumerate(inner_training(optimizer.opt_fn(theta))):
        times = np.tanh(step / np.array(TIMES) - 1)
        for path, shape in SHAPES.items():
            x = kept[path].features(params[path], grads[path], celo=False)
            assert x.shape[-1] == 28
            x = normalised(x, tuple(range(len(shape))), 1e-5)
            x = np.concatenate([x, np.broadcast_to(times, (*shape, 11))], axis=-1)
            out = mlp(theta["network"], x, 2)
            expected = -1e-3 * out[..., 0] * np.exp(1e-3 * out[..., 1])
            assert_close(updates[path], expected, path)


def newton_schulz(x):
    flipped = x.shape[-2] > x.shape[-1]
    x = np.swapaxes(x, -1, -2) if flipped else x
    x = x / (np.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-8)
    for _ in range(5):
        a = x @ np.swapaxes(x, -1, -2)
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return np.swapaxes(x, -1, -2) if flipped else x


def celo2_step(network, x, orthogonalize=True):
    """The direction of a tensor from its features: [*shape, 30] to [*shape], of root mean square one over each matrix."""
    assert x.shape[-1] == 30
    axes = tuple(range(x.ndim - 1))[-2:]
    out = mlp(network, normalised(x, axes, 1e-9), 2)[..., 0]
    return normalised(newton_schulz(out) if orthogonalize and out.ndim > 1 else out, axes, 1e-9)


@pytest.mark.parametrize("orthogonalize", [True, False])
def test_celo2(orthogonalize):
    rule = DirectionRule(nominal=NoNominal(), orthogonalize=orthogonalize, over="matrix", learning_rate=0.1)
    optimizer, theta = make(LearnedOptimizerConfig(rule, Celo2Features(), DeepSetsConfig((8, 8))))
    kept = {path: Published(shape, 0.95) for path, shape in SHAPES.items()}
    for params, grads, updates in inner_training(optimizer.opt_fn(theta)):
        for path in SHAPES:
            expected = celo2_step(theta["network"], kept[path].features(params[path], grads[path], celo=True), orthogonalize)
            assert_close(updates[path], -0.1 * expected, path, 1e-5 if orthogonalize else 2e-6)
