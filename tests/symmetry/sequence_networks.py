"""Recurrent networks and Transformers with the spec of their weights written by hand; see networks.py."""

import functools

import jax
import jax.numpy as jnp
from flax import linen, nnx

from lopt.symmetry.spec import PyTree
from tests.symmetry.networks import (
    BATCH,
    NETWORKS,
    TIME,
    Network,
    cross_entropy,
    linen_network,
    nnx_network,
    normal,
    random_weights,
    register,
    tokens,
)

__all__ = ["NETWORKS"]


# Recurrence.


@register
def simple_rnn() -> Network:
    params = random_weights(
        {"embed": (11, 4), "input": (4, 6), "recurrent": (6, 6), "bias": (6,), "start": (1, 6), "out": (6, 11)}
    )

    def loss(params: PyTree, text: jax.Array) -> jax.Array:
        def step(state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            state = jax.nn.relu(x @ params["input"] + state @ params["recurrent"] + params["bias"][None])
            return state, state

        start = jnp.broadcast_to(params["start"], (BATCH, 6))
        _, states = jax.lax.scan(step, start, params["embed"][text].swapaxes(0, 1))
        return cross_entropy(states[:-1] @ params["out"], text.T[1:])

    notation = {
        "embed": "characters! e",
        "input": "e h",
        "recurrent": "h h",
        "bias": "h",
        "start": "1 h",
        "out": "h next!",
    }
    return Network(loss, params, (tokens(9, 11, BATCH, TIME),), notation)


@register
def two_layers_of_lstm_with_fused_gates() -> Network:
    """Both layers start from the same zeros, and have the same size: that must not tie them."""
    layer = {"input": (6, 24), "recurrent": (6, 24), "bias": (24,)}
    params = {"first": random_weights(layer), "second": random_weights(layer), "embed": normal(0, 11, 6), "out": normal(1, 6, 11)}

    def loss(params: PyTree, text: jax.Array) -> jax.Array:
        zeros = jnp.zeros((BATCH, 6))

        def run(weights: PyTree, xs: jax.Array) -> jax.Array:
            def step(carry: tuple[jax.Array, jax.Array], x: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
                h, c = carry
                gates = x @ weights["input"] + h @ weights["recurrent"] + weights["bias"][None]
                i, f, g, o = jnp.split(gates, 4, axis=-1)
                c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
                h = jax.nn.sigmoid(o) * jnp.tanh(c)
                return (h, c), h

            return jax.lax.scan(step, (zeros, zeros), xs)[1]

        states = run(params["second"], run(params["first"], params["embed"][text].swapaxes(0, 1)))
        return cross_entropy(states[:-1] @ params["out"], text.T[1:])

    notation = {"embed": "characters! e", "out": "h1 next!"}
    for name, x, h in (("first", "e", "h0"), ("second", "h0", "h1")):
        gates = f"({name}_gates! {h})"
        notation |= {f"{name}/input": f"{x} {gates}", f"{name}/recurrent": f"{h} {gates}", f"{name}/bias": gates}
    return Network(loss, params, (tokens(9, 11, BATCH, TIME),), notation, {"first_gates": 4, "second_gates": 4})


@register
def rnn_of_flax_simple_cells() -> Network:
    fn, params = linen_network(linen.RNN(linen.SimpleCell(6)), normal(9, BATCH, TIME, 4))
    notation = {
        "params/cell/i/kernel": "inputs! h",
        "params/cell/i/bias": "h",
        "params/cell/h/kernel": "h h",
    }
    return Network(lambda params, x: jnp.mean(jnp.exp(fn(params, x))), params, (normal(9, BATCH, TIME, 4),), notation)


@register
def gru_of_flax() -> Network:
    fn, params = linen_network(linen.RNN(linen.GRUCell(6)), normal(9, BATCH, TIME, 4))
    notation = {f"params/cell/i{gate}/kernel": "inputs! h" for gate in "rzn"}
    notation |= {f"params/cell/i{gate}/bias": "h" for gate in "rzn"}
    notation |= {f"params/cell/h{gate}/kernel": "h h" for gate in "rzn"} | {"params/cell/hn/bias": "h"}
    return Network(lambda params, x: jnp.mean(jnp.exp(fn(params, x))), params, (normal(9, BATCH, TIME, 4),), notation)


@register
def lstm_of_flax() -> Network:
    """Also bidirectional in the sense that counts here: the sum of two runs, one of them reversed in time."""
    lstm = linen.RNN(linen.OptimizedLSTMCell(6))
    back = linen.RNN(linen.LSTMCell(6), reverse=True, keep_order=True)
    x = normal(9, BATCH, TIME, 4)
    (run, forward), (run_back, backward) = linen_network(lstm, x), linen_network(back, x)

    def fn(params: PyTree, x: jax.Array) -> jax.Array:
        return jnp.max(run(params["forward"], x) + run_back(params["backward"], x), axis=(1, 2))

    notation = {}
    for name in ("forward", "backward"):
        notation |= {f"{name}/params/cell/i{gate}/kernel": "inputs! h" for gate in "ifgo"}
        notation |= {f"{name}/params/cell/h{gate}/kernel": "h h" for gate in "ifgo"}
        notation |= {f"{name}/params/cell/h{gate}/bias": "h" for gate in "ifgo"}
    return Network(fn, {"forward": forward, "backward": backward}, (x,), notation)


@register
def sequence_to_sequence_gru() -> Network:
    """Encoder and decoder cells that share an embedding; the decoder starts from the encoder's last state."""
    cell = {"input": (4, 15), "recurrent": (5, 15), "bias": (15,)}
    params = {
        "embed": normal(0, 11, 4),
        "encoder": random_weights(cell),
        "decoder": random_weights(cell),
        "out": random_weights({"kernel": (5, 11), "bias": (11,)}),
    }

    def step(weights: PyTree, h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        reset_x, update_x, new_x = jnp.split(x @ weights["input"] + weights["bias"][None], 3, axis=-1)
        reset_h, update_h, new_h = jnp.split(h @ weights["recurrent"], 3, axis=-1)
        update = jax.nn.sigmoid(update_x + update_h)
        h = update * h + (1 - update) * jnp.tanh(new_x + jax.nn.sigmoid(reset_x + reset_h) * new_h)
        return h, h

    def loss(params: PyTree, question: jax.Array, answer: jax.Array) -> jax.Array:
        embed = params["embed"]
        state, _ = jax.lax.scan(functools.partial(step, params["encoder"]), jnp.zeros((BATCH, 5)), embed[question.T])
        _, states = jax.lax.scan(functools.partial(step, params["decoder"]), state, embed[answer.T[:-1]])
        return cross_entropy(states @ params["out"]["kernel"] + params["out"]["bias"][None, None], answer.T[1:])

    notation = {"embed": "characters! e", "out/kernel": "h next!", "out/bias": "next!"}
    sizes = {}
    for name in ("encoder", "decoder"):  # the gates of x and of h are cut apart before they meet: two fixed indices
        of_x, of_h = f"({name}_gates_x! h)", f"({name}_gates_h! h)"
        notation |= {f"{name}/input": f"e {of_x}", f"{name}/recurrent": f"h {of_h}", f"{name}/bias": of_x}
        sizes |= {f"{name}_gates_x": 3, f"{name}_gates_h": 3}
    inputs = (tokens(8, 11, BATCH, TIME), tokens(9, 11, BATCH, 4))
    return Network(loss, params, inputs, notation, sizes)


# Attention. 4 heads of width 2 for queries and keys, of width 3 for values.

HEADS, WIDTH, VALUE = 4, 2, 3


def normalize(weights: PyTree, x: jax.Array) -> jax.Array:
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-5)
    return x * jnp.broadcast_to(weights["scale"], x.shape) + jnp.broadcast_to(weights["bias"], x.shape)


def attend(weights: PyTree, x: jax.Array) -> jax.Array:
    """Causal attention, heads made and merged by reshapes."""
    heads = (*x.shape[:-1], HEADS, -1)
    q = (x @ weights["query"] + weights["query_bias"][None, None]).reshape(heads)
    k, v = (x @ weights["key"]).reshape(heads), (x @ weights["value"]).reshape(heads)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / WIDTH**0.5
    causal = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(jnp.where(causal[None, None], scores, -1e9)), v)
    return mixed.reshape(*x.shape[:-1], -1) @ weights["out"]


def transformer(tied: bool, pre_norm: bool, blocks: int = 2) -> Network:
    shapes = {
        "attention": {
            "query": (6, HEADS * WIDTH),
            "query_bias": (HEADS * WIDTH,),
            "key": (6, HEADS * WIDTH),
            "value": (6, HEADS * VALUE),
            "out": (HEADS * VALUE, 6),
        },
        "up": {"kernel": (6, 7), "bias": (7,)},
        "down": {"kernel": (7, 6), "bias": (6,)},
        "norm0": {"scale": (6,), "bias": (6,)},
        "norm1": {"scale": (6,), "bias": (6,)},
    }
    params = {f"block{i}": {name: random_weights(shape) for name, shape in shapes.items()} for i in range(blocks)}
    params |= {"embed": random_weights({"tokens": (11, 6), "positions": (TIME, 6)})}
    if not tied:
        params["head"] = random_weights({"kernel": (6, 11)})

    def loss(params: PyTree, text: jax.Array) -> jax.Array:
        x = params["embed"]["tokens"][text] + params["embed"]["positions"][None]
        for i in range(blocks):
            block = params[f"block{i}"]
            for norm, layer in (("norm0", attend_in(block)), ("norm1", mlp_in(block))):
                x = x + layer(normalize(block[norm], x)) if pre_norm else normalize(block[norm], x + layer(x))
        head = params["embed"]["tokens"].T if tied else params["head"]["kernel"]
        return cross_entropy(x[:, :-1] @ head, text[:, 1:])

    def attend_in(block):
        return functools.partial(attend, block["attention"])

    def mlp_in(block):
        def mlp(x):
            h = jax.nn.gelu(x @ block["up"]["kernel"] + block["up"]["bias"][None, None])
            return h @ block["down"]["kernel"] + block["down"]["bias"][None, None]

        return mlp

    notation = {"embed/tokens": "vocabulary! e", "embed/positions": "time! e"} | ({} if tied else {"head/kernel": "e next!"})
    sizes = {}
    for i in range(blocks):
        sizes |= {f"heads{i}": HEADS, f"qk{i}": WIDTH, f"v{i}": VALUE}
        notation |= {
            f"block{i}/attention/query": f"e (heads{i} qk{i}@heads{i})",
            f"block{i}/attention/query_bias": f"(heads{i} qk{i}@heads{i})",
            f"block{i}/attention/key": f"e (heads{i} qk{i}@heads{i})",
            f"block{i}/attention/value": f"e (heads{i} v{i}@heads{i})",
            f"block{i}/attention/out": f"(heads{i} v{i}@heads{i}) e",
            f"block{i}/up/kernel": f"e mlp{i}",
            f"block{i}/up/bias": f"mlp{i}",
            f"block{i}/down/kernel": f"mlp{i} e",
            f"block{i}/down/bias": "e",
        } | {f"block{i}/{norm}/{leaf}": "e" for norm in ("norm0", "norm1") for leaf in ("scale", "bias")}
    return Network(loss, params, (tokens(9, 11, BATCH, TIME),), notation, sizes)


for _tied in (True, False):
    for _pre_norm in (True, False):
        _name = f"transformer_{'tied' if _tied else 'untied'}_{'pre' if _pre_norm else 'post'}_norm"
        NETWORKS[_name] = functools.partial(transformer, _tied, _pre_norm)


@register
def transformer_of_flax() -> Network:
    """Embed (attended to for the logits), MultiHeadDotProductAttention with a causal mask, RMSNorm, remat."""

    class Block(linen.Module):
        @linen.compact
        def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
            x = x + linen.MultiHeadDotProductAttention(num_heads=4, qkv_features=12)(linen.RMSNorm()(x), mask=mask)
            h = linen.swish(linen.Dense(7)(linen.RMSNorm()(x)))
            return x + linen.Dense(6)(h)

    class Model(linen.Module):
        @linen.compact
        def __call__(self, text: jax.Array) -> jax.Array:
            embed = linen.Embed(11, 6)
            x = linen.remat(Block)()(embed(text), linen.make_causal_mask(text))
            return embed.attend(linen.Dropout(0.5, deterministic=True)(x))

    text = tokens(9, 11, BATCH, TIME)
    fn, params = linen_network(Model(), text)
    block = "params/CheckpointBlock_0"
    notation = {"params/Embed_0/embedding": "vocabulary! e"}
    notation |= {f"{block}/RMSNorm_{i}/scale": "e" for i in range(2)}
    notation |= {f"{block}/Dense_0/kernel": "e mlp", f"{block}/Dense_0/bias": "mlp"}
    notation |= {f"{block}/Dense_1/kernel": "mlp e", f"{block}/Dense_1/bias": "e"}
    for name, width in (("query", "qk"), ("key", "qk"), ("value", "v")):
        notation |= {f"{block}/MultiHeadDotProductAttention_0/{name}/kernel": f"e heads {width}@heads"}
        notation |= {f"{block}/MultiHeadDotProductAttention_0/{name}/bias": f"heads {width}@heads"}
    notation |= {f"{block}/MultiHeadDotProductAttention_0/out/kernel": "heads v@heads e"}
    notation |= {f"{block}/MultiHeadDotProductAttention_0/out/bias": "e"}
    inert = frozenset({f"{block}/MultiHeadDotProductAttention_0/key/bias"})
    return Network(fn, params, (text,), notation, inert=inert)


@register
def vision_transformer() -> Network:
    """Patches by a strided convolution, a class token set before them, learned positions, nnx attention."""

    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.patches = nnx.Conv(2, 6, (3, 2), strides=(3, 2), padding="VALID", rngs=rngs)
            self.start = nnx.Param(jnp.zeros((1, 1, 6)))
            self.positions = nnx.Param(jnp.zeros((1, 5, 6)))
            self.attention = nnx.MultiHeadAttention(4, 6, qkv_features=8, decode=False, rngs=rngs)
            self.norm = nnx.LayerNorm(6, rngs=rngs)
            self.up = nnx.Linear(6, 7, rngs=rngs)
            self.down = nnx.Linear(7, 6, rngs=rngs)
            self.head = nnx.Linear(6, 3, rngs=rngs)

    def call(model: Model, x: jax.Array) -> jax.Array:
        patches = model.patches(x).reshape(x.shape[0], -1, 6)
        start = jnp.broadcast_to(model.start[...], (x.shape[0], 1, 6))
        x = jnp.concatenate([start, patches], axis=1) + model.positions[...]
        x = x + model.attention(model.norm(x))
        x = x + model.down(nnx.gelu(model.up(x)))
        return model.head(x[:, 0])

    fn, params = nnx_network(Model, call)
    notation = {
        "patches/kernel/value": "h! w! channels! e",
        "patches/bias/value": "e",
        "start/value": "1 1 e",
        "positions/value": "1 places! e",
        "norm/scale/value": "e",
        "norm/bias/value": "e",
        "up/kernel/value": "e mlp",
        "up/bias/value": "mlp",
        "down/kernel/value": "mlp e",
        "down/bias/value": "e",
        "head/kernel/value": "e classes!",
        "head/bias/value": "classes!",
        "attention/out/kernel/value": "heads v@heads e",
        "attention/out/bias/value": "e",
    }
    for name, width in (("query", "qk"), ("key", "qk"), ("value", "v")):
        notation |= {
            f"attention/{name}/kernel/value": f"e heads {width}@heads",
            f"attention/{name}/bias/value": f"heads {width}@heads",
        }
    return Network(fn, params, (normal(9, BATCH, 6, 4, 2),), notation, inert=frozenset({"attention/key/bias/value"}))
