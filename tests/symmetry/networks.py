"""Networks with the spec of their weights written by hand: what `infer_spec` must find.

Sizes are distinct wherever the architecture allows, so that no equality of sizes can stand in for a tie, and weights are random
throughout (no zero biases, no unit scales), so that no symmetry of an initialisation can stand in for one of the function.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from lopt.symmetry.spec import PyTree, WeightSpec, named_leaves

BATCH, TIME = 3, 5


@dataclasses.dataclass(frozen=True)
class Network:
    """A function of params and inputs, and its true spec.

    Attributes:
      fn: `fn(params, *inputs)`.
      params: random weights.
      inputs: random data.
      notation: leaf path -> axis names.
      sizes: of names that stand only in composed axes.
      ignore_ties: as in `infer_spec`.
      inert: leaves that the function's value does not depend on, by an identity that no reading of the program shows: what keys'
        biases add to a query's scores is the same for all keys, and a softmax takes it away.
    """

    fn: Callable[..., jax.Array]
    params: PyTree
    inputs: tuple[Any, ...]
    notation: Mapping[str, str]
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    ignore_ties: bool = False
    inert: frozenset[str] = frozenset()

    @property
    def spec(self) -> WeightSpec:
        missing = {path for path, _ in named_leaves(self.params)} ^ set(self.notation)
        assert not missing, f"written by hand for other leaves: {sorted(missing)}"
        notation = [self.notation[path] for path, _ in named_leaves(self.params)]
        return WeightSpec.parse(jax.tree.unflatten(jax.tree.structure(self.params), notation), **self.sizes)


NETWORKS: dict[str, Callable[[], Network]] = {}


def register(build: Callable[[], Network]) -> Callable[[], Network]:
    NETWORKS[build.__name__] = build
    return build


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def tokens(seed: int, size: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(0, size, shape), jnp.int32)


def randomized(params: PyTree) -> PyTree:
    """Random floats in place of an initialisation; the variances of normalisation layers are kept positive."""
    leaves, structure = jax.tree.flatten(params)
    paths = [path for path, _ in named_leaves(params)]

    def draw(seed: int, path: str, leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        fan_in = leaf.size // leaf.shape[-1] if leaf.ndim > 1 else 1
        drawn = normal(seed, *leaf.shape) / fan_in**0.5
        return 0.5 + abs(drawn) if "var" in path.split("/") else drawn

    return structure.unflatten([draw(seed, path, leaf) for seed, (path, leaf) in enumerate(zip(paths, leaves, strict=True))])


def random_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, jax.Array]:
    return randomized({name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()})


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    log_probs = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.sum(jax.nn.one_hot(labels, logits.shape[-1]) * log_probs, axis=-1))


def dense(params: PyTree, x: jax.Array) -> jax.Array:
    y = x @ params["kernel"]
    return y + jnp.broadcast_to(params["bias"], y.shape)


# Networks without time or space.


@register
def mlp() -> Network:
    params = {
        "hidden": random_weights({"kernel": (4, 3), "bias": (3,)}),
        "deep": random_weights({"kernel": (3, 5), "bias": (5,)}),
        "head": random_weights({"kernel": (5, 2), "bias": (2,)}),
    }

    def loss(params: PyTree, x: jax.Array, y: jax.Array) -> jax.Array:
        h = jax.nn.relu(dense(params["hidden"], x.reshape(BATCH, -1)))
        return cross_entropy(dense(params["head"], jnp.tanh(dense(params["deep"], h))), y)

    notation = {
        "hidden/kernel": "(rows! columns!) hidden",
        "hidden/bias": "hidden",
        "deep/kernel": "hidden deep",
        "deep/bias": "deep",
        "head/kernel": "deep classes!",
        "head/bias": "classes!",
    }
    return Network(loss, params, (normal(9, BATCH, 2, 2), tokens(9, 2, BATCH)), notation, {"rows": 2, "columns": 2})


@register
def mlp_of_equal_sizes() -> Network:
    params = [random_weights({"w": (4, 4), "b": (4,)}) for _ in range(4)]

    def loss(params: PyTree, x: jax.Array, y: jax.Array) -> jax.Array:
        for layer in params[:-1]:
            x = jnp.tanh(x @ layer["w"] + layer["b"][None])
        return cross_entropy(x @ params[-1]["w"] + params[-1]["b"][None], y)

    names = ["inputs!", "a", "b", "c", "classes!"]
    notation = {f"{i}/w": f"{names[i]} {names[i + 1]}" for i in range(4)} | {f"{i}/b": names[i + 1] for i in range(4)}
    return Network(loss, params, (normal(9, 4, 4), tokens(9, 4, 4)), notation)


@register
def residual_mlp() -> Network:
    params = {
        "inputs": random_weights({"kernel": (4, 6), "bias": (6,)}),
        "up": [random_weights({"kernel": (6, 3), "bias": (3,)}), random_weights({"kernel": (6, 5), "bias": (5,)})],
        "down": [random_weights({"kernel": (3, 6), "bias": (6,)}), random_weights({"kernel": (5, 6), "bias": (6,)})],
        "head": random_weights({"kernel": (6, 2), "bias": (2,)}),
    }

    def logits(params: PyTree, x: jax.Array) -> jax.Array:
        x = dense(params["inputs"], x)
        for up, down in zip(params["up"], params["down"], strict=True):
            x = x + dense(down, jax.nn.gelu(dense(up, x)))
        return dense(params["head"], x)

    notation = {"inputs/kernel": "pixels! stream", "inputs/bias": "stream", "head/kernel": "stream out!", "head/bias": "out!"}
    for i in range(2):
        notation |= {f"up/{i}/kernel": f"stream h{i}", f"up/{i}/bias": f"h{i}"}
        notation |= {f"down/{i}/kernel": f"h{i} stream", f"down/{i}/bias": "stream"}
    return Network(logits, params, (normal(9, BATCH, 4),), notation)


@register
def tied_autoencoder() -> Network:
    params = random_weights({"w1": (7, 5), "w2": (5, 3), "b1": (5,), "b2": (3,), "c1": (5,), "c2": (7,)})

    def loss(params: PyTree, x: jax.Array) -> jax.Array:
        h = jnp.tanh(x @ params["w1"] + params["b1"][None])
        code = jnp.tanh(h @ params["w2"] + params["b2"][None])
        back = jnp.tanh(code @ params["w2"].T + params["c1"][None])
        return jnp.mean((back @ params["w1"].T + params["c2"][None] - x) ** 2)

    notation = {"w1": "pixels! h", "w2": "h code", "b1": "h", "b2": "code", "c1": "h", "c2": "pixels!"}
    return Network(loss, params, (normal(9, BATCH, 7),), notation)


@register
def scanned_layers() -> Network:
    """Layers stacked along a leading axis. Each permutes its hidden units by itself."""
    params = random_weights({"in": (4, 6), "kernel": (3, 6, 5), "back": (3, 5, 6), "head": (6, 2)})

    def logits(params: PyTree, x: jax.Array) -> jax.Array:
        def layer(x: jax.Array, weights: PyTree) -> tuple[jax.Array, None]:
            return x + jnp.tanh(x @ weights["kernel"]) @ weights["back"], None

        weights = {"kernel": params["kernel"], "back": params["back"]}
        x, _ = jax.lax.scan(jax.checkpoint(layer), x @ params["in"], weights)
        return x @ params["head"]

    notation = {"in": "pixels! s", "kernel": "layers! s h@layers", "back": "layers! h@layers s", "head": "s out!"}
    return Network(logits, params, (normal(9, BATCH, 4),), notation)


@register
def soft_mixture_of_experts() -> Network:
    params = random_weights({"router": (4, 3), "up": (3, 4, 7), "bias": (3, 7), "down": (3, 7, 2)})

    def outputs(params: PyTree, x: jax.Array) -> jax.Array:
        gates = jax.nn.softmax(x @ params["router"])
        h = jax.nn.silu(jnp.einsum("bi,eih->beh", x, params["up"]) + params["bias"][None])
        return jnp.einsum("be,beh,eho->bo", gates, h, params["down"])

    notation = {
        "router": "pixels! experts",
        "up": "experts pixels! h@experts",
        "bias": "experts h@experts",
        "down": "experts h@experts out!",
    }
    return Network(outputs, params, (normal(9, BATCH, 4),), notation)


def top_2_of_experts(params: PyTree, x: jax.Array) -> jax.Array:
    """Each example goes to the two experts of largest score; each expert has hidden units of its own."""
    scores, chosen = jax.lax.top_k(x @ params["router"], 2)
    gates = jnp.einsum("bk,bke->be", jax.nn.softmax(scores), jax.nn.one_hot(chosen, params["router"].shape[-1]))
    h = jnp.tanh(jnp.einsum("bi,eih->beh", x, params["up"]))
    return jnp.einsum("be,beh,eho->bo", gates, h, params["down"])


@register
def ensemble() -> Network:
    """Members side by side, their predictions averaged: they permute, and each has hidden units of its own, two layers of them."""
    params = random_weights({"in": (3, 4, 5), "bias": (3, 5), "mid": (3, 5, 6), "out": (3, 6, 2), "temperature": (3,)})

    def logits(params: PyTree, x: jax.Array) -> jax.Array:
        def member(weights: PyTree) -> jax.Array:
            hidden = jax.nn.softplus(x @ weights["in"] + weights["bias"][None])
            return jnp.tanh(jnp.tanh(hidden @ weights["mid"]) @ weights["out"] * weights["temperature"])

        return jnp.mean(jax.vmap(member)(params), axis=0)

    notation = {"in": "m pixels! h0@m", "bias": "m h0@m", "mid": "m h0@m h1@m", "out": "m h1@m out!", "temperature": "m"}
    return Network(logits, params, (normal(9, BATCH, 4),), notation)


@register
def sparse_mixture_of_experts() -> Network:
    params = random_weights({"router": (4, 3), "up": (3, 4, 7), "down": (3, 7, 2)})
    notation = {"router": "pixels! experts", "up": "experts pixels! h@experts", "down": "experts h@experts out!"}
    return Network(top_2_of_experts, params, (normal(9, 2 * BATCH, 4),), notation, ignore_ties=True)


# Convolutions.


def nnx_network(
    make: Callable[[nnx.Rngs], Any], call: Callable[[Any, jax.Array], jax.Array]
) -> tuple[Callable[..., Any], PyTree]:
    """A module as a function of its state, which is randomized."""
    graph, state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    return lambda params, x: call(nnx.merge(graph, params), x), randomized(state)


def linen_network(module: linen.Module, x: jax.Array) -> tuple[Callable[..., Any], PyTree]:
    return lambda params, x: module.apply(params, x), randomized(jax.eval_shape(module.init, jax.random.key(0), x))


@register
def cnn_with_global_pooling() -> Network:
    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.first = nnx.Conv(2, 5, (3, 2), rngs=rngs)
            self.second = nnx.Conv(5, 7, (2, 4), strides=2, rngs=rngs)
            self.head = nnx.Linear(7, 3, rngs=rngs)

    def call(model: Model, x: jax.Array) -> jax.Array:
        x = nnx.max_pool(nnx.relu(model.first(x)), (2, 2), (1, 1))
        return model.head(jnp.mean(jnp.tanh(model.second(x)), axis=(1, 2)))

    fn, params = nnx_network(Model, call)
    notation = {
        "first/kernel/value": "kh! kw! channels! c0",
        "first/bias/value": "c0",
        "second/kernel/value": "h! w! c0 c1",
        "second/bias/value": "c1",
        "head/kernel/value": "c1 classes!",
        "head/bias/value": "classes!",
    }
    return Network(fn, params, (normal(9, BATCH, 6, 6, 2),), notation)


@register
def cnn_with_flatten() -> Network:
    class Model(linen.Module):
        @linen.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            x = linen.avg_pool(linen.relu(linen.Conv(5, (3, 3))(x)), (2, 2), strides=(2, 2))
            x = linen.tanh(linen.Dense(4)(x.reshape(x.shape[0], -1)))
            return linen.Dense(3)(x)

    x = normal(9, BATCH, 6, 4, 2)
    fn, params = linen_network(Model(), x)
    notation = {
        "params/Conv_0/kernel": "kh! kw! channels! c0",
        "params/Conv_0/bias": "c0",
        "params/Dense_0/kernel": "(h! w! c0) hidden",
        "params/Dense_0/bias": "hidden",
        "params/Dense_1/kernel": "hidden classes!",
        "params/Dense_1/bias": "classes!",
    }
    return Network(fn, params, (x,), notation, {"h": 3, "w": 2})


@register
def grouped_and_depthwise_convolutions() -> Network:
    """The second convolution has 3 groups of 2 channels, the third one filter a channel, the last two filters a channel."""

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            x = linen.tanh(linen.Conv(6, (2, 3))(x))
            x = linen.tanh(linen.Conv(15, (3, 2), feature_group_count=3)(x))
            x = linen.tanh(linen.Conv(15, (3, 2), feature_group_count=15)(x))
            x = linen.tanh(linen.Conv(30, (2, 2), feature_group_count=15)(x))
            return linen.Dense(4)(jnp.sum(x, axis=(1, 2)))

    x = normal(9, BATCH, 4, 5, 2)
    fn, params = linen_network(Model(), x)
    notation = {
        "params/Conv_0/kernel": "h0! w0! channels! (groups a@groups)",
        "params/Conv_0/bias": "(groups a@groups)",
        "params/Conv_1/kernel": "h1! w1! a@groups (groups b@groups)",
        "params/Conv_1/bias": "(groups b@groups)",
        "params/Conv_2/kernel": "h2! w2! 1 (groups b@groups)",
        "params/Conv_2/bias": "(groups b@groups)",
        "params/Conv_3/kernel": "h3! w3! 1 (groups b@groups copies@groups)",
        "params/Conv_3/bias": "(groups b@groups copies@groups)",
        "params/Dense_0/kernel": "(groups b@groups copies@groups) out!",
        "params/Dense_0/bias": "out!",
    }
    return Network(fn, params, (x,), notation, {"groups": 3, "a": 2, "b": 5, "copies": 2})


class ResNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(2, 6, (3, 3), use_bias=False, rngs=rngs)
        self.stem_norm = nnx.BatchNorm(6, rngs=rngs)
        self.inner = nnx.Conv(6, 4, (2, 3), use_bias=False, rngs=rngs)
        self.inner_norm = nnx.BatchNorm(4, rngs=rngs)
        self.outer = nnx.Conv(4, 6, (3, 2), rngs=rngs)
        self.down = nnx.Conv(6, 5, (1, 1), strides=2, rngs=rngs)
        self.head = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.silu(self.stem_norm(self.stem(x)))
        x = x + self.outer(nnx.silu(self.inner_norm(self.inner(x))))
        return self.head(jnp.mean(jnp.tanh(self.down(x)), axis=(1, 2)))


RESNET = {
    "stem/kernel/value": "h0! w0! channels! c0",
    "inner/kernel/value": "h1! w1! c0 c1",
    "outer/kernel/value": "h2! w2! c1 c0",
    "outer/bias/value": "c0",
    "down/kernel/value": "1 1 c0 c2",
    "down/bias/value": "c2",
    "head/kernel/value": "c2 classes!",
    "head/bias/value": "classes!",
    **{f"stem_norm/{leaf}/value": "c0" for leaf in ("scale", "bias")},
    **{f"inner_norm/{leaf}/value": "c1" for leaf in ("scale", "bias")},
}


@register
def resnet_with_batch_norm() -> Network:
    def evaluation(rngs: nnx.Rngs) -> ResNet:
        model = ResNet(rngs)
        model.eval()
        return model

    fn, params = nnx_network(evaluation, lambda model, x: model(x))
    statistics = {f"{norm}_norm/{leaf}/value": c for norm, c in (("stem", "c0"), ("inner", "c1")) for leaf in ("mean", "var")}
    return Network(fn, params, (normal(9, BATCH, 4, 5, 2),), RESNET | statistics)


@register
def resnet_with_batch_norm_in_training() -> Network:
    """Statistics of the batch are used; the running ones do not matter to the outputs, and so permute each by itself."""
    fn, params = nnx_network(ResNet, lambda model, x: model(x))
    statistics = {f"{norm}_norm/{leaf}/value": f"{norm}_{leaf}" for norm in ("stem", "inner") for leaf in ("mean", "var")}
    return Network(fn, params, (normal(9, BATCH, 4, 5, 2),), RESNET | statistics)


@register
def resnet_with_group_norm() -> Network:
    """Groups of channels permute, and the channels of each group."""

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            x = linen.Conv(6, (3, 2))(x)
            y = linen.Conv(5, (2, 3))(linen.relu(linen.GroupNorm(num_groups=2)(x)))
            x = x + linen.Conv(6, (2, 2))(linen.relu(linen.LayerNorm()(y)))
            return linen.Dense(4)(jnp.max(x, axis=(1, 2)))

    x = normal(9, BATCH, 4, 5, 2)
    fn, params = linen_network(Model(), x)
    notation = {
        "params/Conv_0/kernel": "h0! w0! channels! (groups c@groups)",
        "params/Conv_1/kernel": "h1! w1! (groups c@groups) d",
        "params/Conv_2/kernel": "h2! w2! d (groups c@groups)",
        "params/Dense_0/kernel": "(groups c@groups) out!",
        "params/Conv_0/bias": "(groups c@groups)",
        "params/Conv_1/bias": "d",
        "params/Conv_2/bias": "(groups c@groups)",
        "params/Dense_0/bias": "out!",
        **{f"params/GroupNorm_0/{leaf}": "(groups c@groups)" for leaf in ("scale", "bias")},
        **{f"params/LayerNorm_0/{leaf}": "d" for leaf in ("scale", "bias")},
    }
    return Network(fn, params, (x,), notation, {"groups": 2, "c": 3})
