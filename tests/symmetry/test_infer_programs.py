"""What `infer_spec` makes of programs as people write them: parts of models that turn on one rule or a few."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lopt.symmetry import infer_spec
from lopt.symmetry.spec import PyTree
from tests.symmetry.networks import normal, random_weights, tokens

W = random_weights({"hidden": (4, 3), "head": (3, 2)})
X = normal(2, 5, 4)
FOUND = {"head": "hidden head.out!", "hidden": "hidden.in! hidden"}


def notation(fn, params: PyTree, *inputs: PyTree, **options) -> dict[str, str]:
    """The inferred spec; a warning is an error here, so every primitive has a rule and the check agrees."""
    spec = infer_spec(fn, params, *inputs, **options)
    return {path: spec.notation(path) for path in spec.paths}


# Axes with names.


def normalized(axis_name: str, x: jax.Array) -> jax.Array:
    x = x - jax.lax.pmean(x, axis_name)
    return x / jnp.sqrt(jax.lax.pmean(x**2, axis_name) + 1e-3) + jax.lax.pmax(x, axis_name) + jax.lax.psum(x, axis_name)


def test_statistics_over_a_mapped_batch_leave_channels_free():
    def fn(params, x):
        def one(x):
            return jnp.tanh(normalized("batch", x @ params["hidden"])) @ params["head"]

        return jax.vmap(one, axis_name="batch")(x)

    assert notation(fn, W, X) == FOUND


@pytest.mark.parametrize("gathered", [False, True])
def test_shard_map_over_the_batch(gathered):
    mesh = jax.make_mesh((1,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    shards, replicated = PartitionSpec("devices"), PartitionSpec()

    def fn(params, x):
        def local(params, x):
            y = jnp.tanh(normalized("devices", x @ params["hidden"])) @ params["head"]
            if gathered:
                return jax.lax.all_gather(y, "devices", tiled=True)
            return y + jax.lax.axis_index("devices").astype(jnp.float32)

        specs = {"mesh": mesh, "in_specs": (replicated, shards), "out_specs": replicated if gathered else shards}
        return jax.shard_map(local, **specs, check_vma=False)(params, x)

    assert notation(fn, W, X) == FOUND


def test_an_axis_that_devices_divide_permutes_within_each():
    mesh = jax.make_mesh((2,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    columns, rows = PartitionSpec(None, "devices"), PartitionSpec("devices")
    params = random_weights({"hidden": (4, 6), "head": (6, 2)})

    def fn(params, x):
        def local(hidden, head, x):
            return jax.lax.psum(jnp.tanh(x @ hidden) @ head, "devices")

        divided = jax.shard_map(local, mesh=mesh, in_specs=(columns, rows, PartitionSpec()), out_specs=PartitionSpec())
        return divided(params["hidden"], params["head"], x)

    found = notation(fn, params, X)
    assert found == {"hidden": "hidden.in! (hidden.out0! hidden)", "head": "(hidden.out0! hidden) head.out!"}


# Arrays that a function closes over.


def test_statistics_that_a_loss_closes_over_are_named():
    statistics = random_weights({"mean": (3,), "var": (3,)})

    def fn(params, statistics, x):
        h = (x @ params["hidden"] - statistics["mean"][None]) * jnp.exp(statistics["var"])[None]
        return jnp.tanh(h) @ params["head"]

    with pytest.warns(
        UserWarning, match=r"shapes \[\(3,\)\], fix axes of \['head', 'hidden'\]\. .* a part of the params"
    ) as caught:
        found = infer_spec(lambda params, x: fn(params, statistics, x), W, X)
    assert found.notation("head") == "hidden.out! head.out!"
    assert caught[0].filename == __file__
    together = infer_spec(lambda p, x: fn(p["params"], p["state"], x), {"params": W, "state": statistics}, X)
    assert [together.notation(path) for path in together.paths[2:]] == ["hidden", "hidden"]


def test_data_that_a_loss_closes_over_are_not():
    """A batch has an axis that no weight has; what is fixed by more than the array is not its doing."""
    targets, frequencies = normal(3, 5, 2), normal(4, 2)

    def fn(params):
        return jnp.mean((jnp.tanh(X @ params["hidden"]) @ params["head"] - targets) ** 2 * frequencies[None])

    assert notation(fn, W) == {"head": "hidden head.out!", "hidden": "hidden.in! hidden"}


# Look-ups.


def test_a_mapped_look_up_takes_whole_rows():
    params = random_weights({"embedding": (7, 4), "hidden": (4, 3), "head": (3, 2)})

    def fn(params, text):
        x = jax.vmap(lambda token: params["embedding"][token])(text)
        return jnp.tanh(x @ params["hidden"]) @ params["head"]

    assert notation(fn, params, tokens(0, 7, 5)) == {
        "embedding": "embedding.rows! embedding",
        "hidden": "embedding hidden",
        "head": "hidden head.out!",
    }


def quantized(params: PyTree, x: jax.Array, look_up) -> jax.Array:
    """A vector-quantised autoencoder, its gradient passed straight through."""
    h = x @ params["encoder"]
    distances = jnp.sum((h[:, None] - params["codes"][None]) ** 2, axis=-1)
    best = look_up(params["codes"], jnp.argmin(distances, axis=-1))
    passed = h + jax.lax.stop_gradient(best - h)
    return jnp.mean((passed @ params["decoder"] - x) ** 2) + jnp.mean((best - jax.lax.stop_gradient(h)) ** 2)


@pytest.mark.parametrize(
    "look_up",
    [
        lambda codes, best: codes[best],
        functools.partial(jnp.take, axis=0),
        functools.partial(jnp.take, axis=0, mode="clip"),
        lambda codes, best: jax.nn.one_hot(best, 6) @ codes,
    ],
    ids=["index", "take", "clipped", "one-hot"],
)
def test_codes_may_change_places_where_ties_are_ignored(look_up):
    params = random_weights({"encoder": (4, 3), "codes": (6, 3), "decoder": (3, 4)})

    def fn(params, x):
        return quantized(params, x, look_up)

    found = notation(fn, params, X, ignore_ties=True)
    assert found == {"codes": "codes.in encoder", "decoder": "encoder encoder.in!", "encoder": "encoder.in! encoder"}
    assert notation(fn, params, X)["codes"].split()[0].endswith("!")


def test_numbers_computed_from_an_index_fix_it():
    params = random_weights({"a": (6,), "b": (6,)})
    for shifted in (lambda best: best + 1, lambda best: jnp.maximum(best, 2), lambda best: jnp.where(best < 3, best, best - 6)):

        def fn(params, shifted=shifted):
            return jnp.take(params["b"], shifted(jnp.argmax(params["a"])), mode="clip")

        assert notation(fn, params, ignore_ties=True)["a"] == "a.out!"


def test_the_largest_values_alone_do_not_ask_for_places():
    def fn(params, x):
        h = x @ params["hidden"]
        return jnp.where(h >= jax.lax.top_k(h, 2)[0][:, -1:], h, 0.0) @ params["head"]

    assert notation(fn, W, X) == FOUND
    assert notation(jax.jit(fn), W, X) == FOUND


# Matrices.


PENALTIES = {
    "orthogonality": lambda w: jnp.sum((w @ w.T - jnp.eye(len(w))) ** 2),
    "a constant identity": lambda w: jnp.sum((w @ w.T - np.eye(len(w), dtype="f")) ** 2),
    "off-diagonal entries": lambda w: jnp.sum((w @ w.T * (1 - np.eye(len(w), dtype="f"))) ** 2),
    "trace": lambda w: jnp.trace(w @ w.T) ** 2,
    "diag": lambda w: jnp.sum(jnp.diag(w @ w.T) ** 3),
    "diag of a vector": lambda w: jnp.sum((w @ w.T - jnp.diag(jnp.sum(w, axis=1))) ** 3),
    "diagonal": lambda w: jnp.sum(jnp.diagonal(w @ w.T) ** 3),
    "places": lambda w: jnp.sum((w @ w.T)[jnp.arange(len(w)), np.arange(len(w))] ** 3),
}


@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_identity_has_no_order(penalty):
    params = random_weights({"hidden": (4, 6), "head": (6, 2)})

    def fn(params, x):
        return jnp.mean(jnp.tanh(x @ params["hidden"]) @ params["head"]) + PENALTIES[penalty](params["head"])

    assert notation(fn, params, X) == {"hidden": "hidden.in! hidden", "head": "hidden head"}


def test_other_matrices_have():
    params = random_weights({"hidden": (4, 6), "head": (6, 2)})
    for other in (np.eye(6, k=1, dtype="f"), np.diag(np.arange(6)).astype("f"), np.tri(6, dtype="f")):

        def fn(params, x, other=other):
            return jnp.mean(jnp.tanh(x @ params["hidden"])) + jnp.sum((params["head"] @ params["head"].T - other) ** 2)

        assert notation(fn, params, X) == {"hidden": "hidden.in! hidden", "head": "head.in! head"}


SOLVERS = {
    "cholesky": lambda a, b: jnp.linalg.cholesky(a) @ b,
    "solve": jnp.linalg.solve,
    "inverse": lambda a, b: jnp.linalg.inv(a) @ b,
    "triangular": lambda a, b: jax.scipy.linalg.solve_triangular(jnp.linalg.cholesky(a), b, lower=True),
    "determinant": lambda a, b: jnp.linalg.slogdet(a)[1][:, None, None] * b,
    "eigh": lambda a, b: jnp.linalg.eigh(a)[0][:, None] * b.mT,
}


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_batch_of_matrices_is_free(solver):
    params = random_weights({"factors": (6, 3, 3), "sides": (6, 3, 4)})

    def fn(params):
        square = params["factors"] @ params["factors"].mT + jnp.broadcast_to(jnp.eye(3), (6, 3, 3))
        return jnp.sum(jnp.sin(SOLVERS[solver](square, params["sides"])))

    found = notation(fn, params)
    batch = found["factors"].split()[0]
    assert not batch.endswith("!")
    assert found["factors"].split()[1].endswith("!")
    assert found["sides"].split()[0] == batch
    assert not found["sides"].split()[2].endswith("!")


def test_each_group_of_a_ragged_product_has_its_own_order_of_hidden_units():
    params = random_weights({"up": (2, 4, 3), "down": (2, 3, 4)})
    counts = jnp.asarray([3, 2], jnp.int32)

    def fn(params, x):
        return jax.lax.ragged_dot(jnp.tanh(jax.lax.ragged_dot(x, params["up"], counts)), params["down"], counts)

    assert notation(fn, params, X) == {"up": "up.axis0! up.axis1! up@up.axis0", "down": "up.axis0! up@up.axis0 down.out!"}

    def of_other_counts(params, x):
        hidden = jnp.tanh(jax.lax.ragged_dot(x, params["up"], counts))
        return jax.lax.ragged_dot(hidden, params["down"], counts[::-1])

    assert notation(of_other_counts, params, X)["up"] == "up.axis0! up.axis1! up"

    def mixed(params, x):
        hidden = jnp.tanh(jax.lax.ragged_dot(x, params["up"], counts))
        return jax.lax.ragged_dot(hidden + jnp.cumsum(hidden, axis=0), params["down"], counts)

    assert notation(mixed, params, X)["up"] == "up.axis0! up.axis1! up"


# Reductions by functions.


def test_reductions_by_any_function_fix_what_they_reduce():
    params = random_weights({"a": (4, 6), "b": (4,)})

    def reduced(params):
        return jnp.sum(jnp.sin(jax.lax.reduce(params["a"], np.float32(1), lambda x, y: x * jnp.tanh(y) + x, (1,)) * params["b"]))

    def in_windows(params):
        h = jax.lax.reduce_window(params["a"], np.float32(1), lambda x, y: x * jnp.tanh(y) + x, (1, 6), (1, 1), "VALID")
        return jnp.sum(jnp.sin(h[:, 0] * params["b"]))

    def pooled(params):
        def energy(a):
            return jnp.sum(jnp.sin(jax.lax.reduce_window(a, -jnp.inf, jax.lax.max, (1, 2), (1, 2), "VALID")))

        return jnp.sum(jax.grad(energy)(params["a"]) ** 2 * params["b"][:, None])

    for fn in (reduced, in_windows, pooled):
        found = notation(fn, params)
        assert found == {"a": f"{found['b']} a.out!", "b": found["b"]}
        assert not found["b"].endswith("!")


# Nested names.


HEADS, DIM = 2, 3


def test_each_head_of_graph_attention_keeps_its_own_order():
    params = random_weights({"values": (4, HEADS, DIM), "scores": (HEADS, DIM), "out": (HEADS, DIM, 2)})
    senders, receivers = tokens(0, 5, 8), tokens(1, 5, 8)

    def fn(params, x):
        h = jnp.einsum("ni,ihd->nhd", x, params["values"])
        edges = jnp.tanh(h[senders] + h[receivers])
        weights = jnp.exp(jnp.einsum("ehd,hd->eh", edges, params["scores"]))
        mixed = jax.ops.segment_sum(weights[:, :, None] * h[senders], receivers, 5)
        total = jax.ops.segment_sum(weights, receivers, 5)
        return jnp.einsum("nhd,hdo->no", mixed / (total[:, :, None] + 1.0), params["out"])

    assert notation(fn, params, X) == {
        "values": "values.axis0! values.axis1 values@values.axis1",
        "scores": "values.axis1 values@values.axis1",
        "out": "values.axis1 values@values.axis1 out.out!",
    }


def test_each_head_of_linear_attention_keeps_its_own_order():
    shape = (4, HEADS * DIM)
    params = random_weights({"query": shape, "key": shape, "value": shape, "out": shape[::-1]})

    def fn(params, x):
        q, k, v = ((x @ params[name]).reshape(-1, HEADS, DIM) for name in ("query", "key", "value"))
        state = jnp.cumsum(k[:, :, :, None] * v[:, :, None], axis=0)
        return jnp.einsum("thd,thde->the", q, state).reshape(len(x), -1) @ params["out"]

    assert notation(fn, params, X) == {
        "key": "query.in! (query.out0 query@query.out0)",
        "query": "query.in! (query.out0 query@query.out0)",
        "value": "query.in! (query.out0 value@query.out0)",
        "out": "(query.out0 value@query.out0) out.out!",
    }


@pytest.mark.parametrize(
    "along", [lambda h: jnp.cumsum(h, axis=1), lambda h: jnp.flip(h, 1), lambda h: h[:, jnp.asarray([1, 0])]]
)
def test_what_acts_along_the_heads_themselves_unties_nothing(along):
    params = random_weights({"values": (4, HEADS, DIM), "out": (HEADS, DIM, 2)})

    def fn(params, x):
        h = jnp.tanh(jnp.einsum("ni,ihd->nhd", x, params["values"]))
        return jnp.einsum("nhd,hdo->no", jnp.sin(along(h) + h), params["out"])

    assert notation(fn, params, X)["out"] == "values.axis1! values out.out!"
