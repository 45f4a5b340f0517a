"""A rule, a kind of feature and a network of one's own: python scripts/meta_train.py --config examples/own_rule_config.py --run-dir RUN

The rule: a sign step, as Lion's, of what a network makes of each weight. The feature: whether gradient and momentum agree. The network: one
hidden layer whose units see the mean over the tensor. Each is a frozen dataclass of a module that can be imported.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from lopt.features import Kind
from lopt.features.momenta import momentum, read_momentum
from lopt.networks.update import NetworkConfig, UpdateNetwork
from lopt.optimizers.base import RuleConfig


@dataclasses.dataclass(frozen=True)
class SignRule(RuleConfig):
    """W <- W - rate tanh(10 (f + m)): nearly a sign, which has a derivative."""

    learning_rate: float = 0.003

    @property
    def outputs(self):
        return 1  # numbers per weight that it wants of the network

    def init(self):
        return {"log_rate": jnp.float32(jnp.log(self.learning_rate))}

    def make_nominal(self, theta, spec):
        return optax.ema(0.9, debias=False, accumulator_dtype=jnp.float32)

    def direction(self, theta, f, n, context):
        return {path: jnp.tanh(10 * (f[path][0] + m)) for path, m in n.items()}

    def size(self, theta, context):
        return jnp.exp(theta["log_rate"])

    def scalars(self, theta):
        return {"rate": jnp.exp(theta["log_rate"])}


@dataclasses.dataclass(frozen=True)
class Agreement(Kind):
    """g m / (|g m| + 1e-12): 1 where gradient and momentum point the same way, -1 where they do not."""

    decay: float = 0.9

    def accumulators(self):
        return momentum(self.decay)

    def channels(self, normal):
        return (normal._replace(name="agreement", over="nothing"),)

    def per_weight(self, leaf):
        product = leaf.gradient * read_momentum(leaf, self.decay, corrected=False)
        return (product / (jnp.abs(product) + 1e-12),)


@dataclasses.dataclass(frozen=True)
class MeanNetwork(NetworkConfig):
    """tanh([x, mean of x over the tensor] A) b for the channels x of every weight; it needs no spec."""

    hidden: tuple[int, ...] = (8,)

    @property
    def needs_spec(self):
        return False

    def make(self, spec, features, outputs, sizes=None):
        channels, (width,) = len(features.channels), self.hidden

        def init(key):
            return {"a": 0.3 * jax.random.normal(key, (2 * channels, width)), "last": jnp.zeros((width, outputs))}

        def apply(theta, seen):
            out = {}
            for path, arrays in seen.channels.items():
                x = jnp.tanh(jnp.stack(arrays, axis=-1))
                mean = jnp.broadcast_to(jnp.mean(x, axis=tuple(range(x.ndim - 1)), keepdims=True), x.shape)
                out[path] = jnp.moveaxis(jnp.tanh(jnp.concatenate([x, mean], axis=-1) @ theta["a"]) @ theta["last"], -1, 0)
            return out

        return UpdateNetwork(init, apply)
