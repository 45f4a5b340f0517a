"""Networks that concatenate and split, with the spec of their weights written by hand; see networks.py."""

import jax
import jax.numpy as jnp

from lopt.symmetry.spec import PyTree
from tests.symmetry.networks import BATCH, NETWORKS, TIME, Network, cross_entropy, normal, random_weights, register, tokens

__all__ = ["NETWORKS"]


def together(*parts: jax.Array) -> jax.Array:
    return jnp.concatenate(parts, axis=-1)


@register
def lstm_of_input_beside_state() -> Network:
    """As it is most often written: one kernel for [x, h], whose outputs are split into gates."""
    params = random_weights({"embed": (11, 4), "kernel": (4 + 6, 24), "bias": (24,), "out": (6, 11)})

    def loss(params: PyTree, text: jax.Array) -> jax.Array:
        def step(carry, x):
            h, c = carry
            i, f, g, o = jnp.split(together(x, h) @ params["kernel"] + params["bias"][None], 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zeros = jnp.zeros((BATCH, 6))
        _, states = jax.lax.scan(step, (zeros, zeros), params["embed"][text].swapaxes(0, 1))
        return cross_entropy(states[:-1] @ params["out"], text.T[1:])

    notation = {"embed": "characters! e", "kernel": "(e | h) (gates! h)", "bias": "(gates! h)", "out": "h next!"}
    return Network(loss, params, (tokens(9, 11, BATCH, TIME),), notation, {"gates": 4})


@register
def gru_with_gates_beside_candidate() -> Network:
    """Two gates from one kernel, the candidate from another: both read [x, h], x being data."""
    params = random_weights({"gates": (4 + 6, 12), "candidate": (4 + 6, 6), "out": (6, 3)})

    def fn(params: PyTree, xs: jax.Array) -> jax.Array:
        def step(h, x):
            reset, update = jnp.split(jax.nn.sigmoid(together(x, h) @ params["gates"]), 2, axis=-1)
            return update * h + (1 - update) * jnp.tanh(together(x, reset * h) @ params["candidate"]), None

        return jax.lax.scan(step, jnp.zeros((BATCH, 6)), xs)[0] @ params["out"]

    notation = {"gates": "(inputs! | h) (gates! h)", "candidate": "(inputs! | h) h", "out": "h out!"}
    return Network(fn, params, (normal(9, TIME, BATCH, 4),), notation, {"gates": 2})


@register
def bidirectional_rnn() -> Network:
    """Two directions of one width, which are no one permutation."""
    cell = {"input": (4, 5), "recurrent": (5, 5)}
    params = {"forward": random_weights(cell), "backward": random_weights(cell), "mix": normal(0, 10, 6), "out": normal(1, 6, 3)}

    def fn(params: PyTree, xs: jax.Array) -> jax.Array:
        def run(weights, reverse):
            def step(h, x):
                h = jnp.tanh(x @ weights["input"] + h @ weights["recurrent"])
                return h, h

            return jax.lax.scan(step, jnp.zeros((BATCH, 5)), xs, reverse=reverse)[1]

        states = together(run(params["forward"], False), run(params["backward"], True))
        return jnp.tanh(states @ params["mix"]) @ params["out"]

    notation = {"mix": "(f | b) m", "out": "m out!"}
    for name in ("forward", "backward"):
        notation |= {f"{name}/input": f"inputs! {name[0]}", f"{name}/recurrent": f"{name[0]} {name[0]}"}
    return Network(fn, params, (normal(9, TIME, BATCH, 4),), notation)


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=numbers)


@register
def dense_net() -> Network:
    """Every layer reads all before it."""
    growth = [3, 4, 5]
    channels = [2, 5, 9, 14]
    params = {f"conv{i}": normal(i, 3, 3, channels[i], growth[i]) / channels[i] ** 0.5 for i in range(3)}
    params["out"] = normal(3, 14, 3)

    def fn(params: PyTree, x: jax.Array) -> jax.Array:
        for i in range(3):
            x = together(x, jax.nn.relu(convolve(x, params[f"conv{i}"])))
        return jnp.mean(x, axis=(1, 2)) @ params["out"]

    notation = {
        "conv0": "h0! w0! x! a",
        "conv1": "h1! w1! (x! | a) b",
        "conv2": "h2! w2! (x! | a | b) c",
        "out": "(x! | a | b | c) out!",
    }
    return Network(fn, params, (normal(9, BATCH, 4, 4, 2),), notation)


@register
def u_net() -> Network:
    """A skip connection beside what comes up from below, and the time beside the deepest features."""
    shapes = {"down": (3, 3, 2, 4), "deep": (3, 3, 4, 5), "time": (3, 6), "middle": (1, 1, 11, 7), "up": (3, 3, 11, 2)}
    params = random_weights(shapes)

    def fn(params: PyTree, x: jax.Array, time: jax.Array) -> jax.Array:
        skip = jnp.tanh(convolve(x, params["down"]))
        deep = jnp.tanh(convolve(skip, params["deep"], 2))
        when = jnp.broadcast_to(jnp.tanh(time @ params["time"])[:, None, None], (*deep.shape[:3], 6))
        middle = jnp.tanh(convolve(together(deep, when), params["middle"]))
        wide = jax.image.resize(middle, (*skip.shape[:3], 7), "nearest")
        return convolve(together(skip, wide), params["up"])

    notation = {
        "down": "h0! w0! x! s",
        "deep": "h1! w1! s d",
        "time": "features! t",
        "middle": "1 1 (d | t) m",
        "up": "h2! w2! (s | m) y!",
    }
    return Network(fn, params, (normal(9, BATCH, 4, 4, 2), normal(8, BATCH, 3)), notation)


@register
def wide_and_deep() -> Network:
    """Raw features beside an embedding and hidden units, which the last layer also reads by themselves."""
    params = random_weights({"embed": (7, 3), "deep": (4 + 3, 5), "deeper": (5, 6), "out": (4 + 3 + 6, 2)})

    def fn(params: PyTree, x: jax.Array, kind: jax.Array) -> jax.Array:
        embedded = params["embed"][kind]
        h = jnp.tanh(jnp.tanh(together(x, embedded) @ params["deep"]) @ params["deeper"])
        return together(h, x, embedded) @ params["out"]

    notation = {"embed": "kinds! e", "deep": "(x! | e) d", "deeper": "d h", "out": "(h | x! | e) out!"}
    return Network(fn, params, (normal(9, BATCH, 4), tokens(9, 7, BATCH)), notation)


@register
def density_beside_features() -> Network:
    """A kernel that makes one number and a vector, which is normalised, padded and read beside a direction."""
    params = random_weights({"hidden": (3, 6), "both": (6, 1 + 4), "bias": (5,), "colour": (4 + 2, 5), "out": (5, 3)})

    def fn(params: PyTree, x: jax.Array, direction: jax.Array) -> jax.Array:
        both = jnp.tanh(x @ params["hidden"]) @ params["both"] + params["bias"][None]
        density, features = jax.nn.softplus(both[:, :1]), both[:, 1:]
        features = features - jnp.mean(features, axis=1, keepdims=True)
        colour = jnp.tanh(together(features, direction) @ params["colour"]) @ params["out"]
        return density * colour

    notation = {"hidden": "x! h", "both": "h (1 | f)", "bias": "(1 | f)", "colour": "(f | d!) c", "out": "c out!"}
    return Network(fn, params, (normal(9, BATCH, 3), normal(8, BATCH, 2)), notation)


@register
def relation_network() -> Network:
    """Pairs of objects side by side: both halves of the kernel are read in one order."""
    params = random_weights({"encoder": (4, 3), "relation": (6, 5), "out": (5, 2)})

    def fn(params: PyTree, x: jax.Array) -> jax.Array:
        h = jnp.tanh(x @ params["encoder"])
        pairs = together(*(jnp.broadcast_to(jnp.expand_dims(h, axis), (TIME, TIME, 3)) for axis in (0, 1)))
        before = jnp.tril(jnp.ones((TIME, TIME)))  # a pair is one of a later and an earlier object
        return jnp.einsum("ij,ijr->r", before, jnp.tanh(pairs @ params["relation"])) @ params["out"]

    notation = {"encoder": "x! h", "relation": "(side! h) r", "out": "r out!"}
    return Network(fn, params, (normal(9, TIME, 4),), notation, {"side": 2})


@register
def multi_query_attention() -> Network:
    """One kernel for the queries of all heads, and the keys and values that they share."""
    heads, width, value = 4, 2, 3
    params = random_weights({"embed": (11, 6), "fused": (6, heads * width + width + value), "out": (heads * value, 6)})

    def loss(params: PyTree, text: jax.Array) -> jax.Array:
        x = params["embed"][text]
        q, k, v = jnp.split(x @ params["fused"], [heads * width, (heads + 1) * width], axis=-1)
        scores = jnp.einsum("bqhd,bkd->bhqk", q.reshape(*q.shape[:2], heads, width), k)
        mixed = jnp.einsum("bhqk,bkv->bqhv", jax.nn.softmax(scores), v)
        return cross_entropy((x + mixed.reshape(*x.shape[:2], -1) @ params["out"]) @ params["embed"].T, text)

    notation = {"embed": "vocabulary! e", "fused": "e (heads qk | qk | v)", "out": "(heads v) e"}
    return Network(loss, params, (tokens(9, 11, BATCH, TIME),), notation, {"heads": heads, "qk": width, "v": value})
