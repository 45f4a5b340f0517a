"""What `infer_spec` accepts, names, warns of and refuses; and small functions that show one rule each."""

import dataclasses
import linecache
import re
import subprocess
import sys
import warnings

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.symmetry import SpecError, WeightSpec, infer_spec, rules
from tests.symmetry.networks import normal, top_2_of_experts


def notation(fn, params, *inputs, **options):
    spec = infer_spec(fn, params, *inputs, **options)
    return {path: spec.notation(path) for path in spec.paths}


def two_layers(params, x):
    return jnp.tanh(x @ params["hidden"]) @ params["head"]


W = {"hidden": normal(0, 4, 3), "head": normal(1, 3, 2)}
X = normal(2, 5, 4)
FOUND = {"head": "hidden head.out!", "hidden": "hidden.in! hidden"}


# Names.


def test_names_come_from_the_layer_that_introduces_them():
    params = {
        "encoder": {"kernel": normal(0, 4, 3), "bias": normal(1, 3)},
        "norm": {"scale": normal(2, 3)},
        "blocks": [{"w": normal(3, 3, 6), "b": normal(4, 6)}],
        "a_head": {"kernel": {"value": normal(5, 6, 2)}},
    }

    def fn(params, x):
        x = x @ params["encoder"]["kernel"] + params["encoder"]["bias"][None]
        x = x * params["norm"]["scale"][None]
        block = params["blocks"][0]
        return jnp.tanh(x @ block["w"] + block["b"][None]) @ params["a_head"]["kernel"]["value"]

    assert notation(fn, params, X) == {
        "a_head/kernel/value": "blocks.0 a_head.out!",
        "blocks/0/b": "blocks.0",
        "blocks/0/w": "encoder blocks.0",
        "encoder/bias": "encoder",
        "encoder/kernel": "encoder.in! encoder",
        "norm/scale": "encoder",
    }


def test_names_are_unique_and_readable_by_the_parser():
    params = [{"w": normal(0, 4, 3)}, {"strange key!": normal(1, 3, 2)}, {"w": normal(2, 2, 3, 3)}]

    def fn(params, x):
        return jnp.einsum("bi,ij,jk,klm->", x, params[0]["w"], params[1]["strange key!"], params[2]["w"])

    spec = infer_spec(fn, params, X)
    tree = [{key: spec.notation(f"{i}/{key}") for key in layer} for i, layer in enumerate(params)]
    assert tree == [
        {"w": "layer0.in! layer0"},
        {"strange key!": "layer0 layer1.strange_key_"},
        {"w": "layer1.strange_key_ layer2.axis1 layer2@layer2.axis1"},
    ]
    assert WeightSpec.parse(tree) == spec


def test_the_names_of_a_transformers_heads_and_an_embedding():
    params = {name: normal(i, 6, 8) for i, name in enumerate(("query", "key"))} | {"embedding": normal(3, 11, 6)}

    def fn(params, text):
        x = params["embedding"][text]
        q, k = ((x @ params[name]).reshape(5, 4, 2) for name in ("query", "key"))
        return jnp.sum(jnp.exp(jnp.einsum("qhd,khd->hqk", q, k)))

    assert notation(fn, params, jnp.arange(5)) == {
        "embedding": "embedding.rows! embedding",
        "key": "embedding (query.out0 query@query.out0)",
        "query": "embedding (query.out0 query@query.out0)",
    }


# What params may be.


def test_any_pytree_of_params():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Model:
        hidden: jax.Array
        head: jax.Array

    assert notation(lambda model, x: two_layers(vars(model), x), Model(**W), X) == FOUND
    assert notation(two_layers, flax.core.freeze(W), X) == FOUND
    by_position = notation(lambda p, x: two_layers({"hidden": p[0], "head": p[1]}, x), (W["hidden"], W["head"]), X)
    assert by_position == {"0": "layer0.in! layer0", "1": "layer0 layer1.out!"}


def test_leaves_that_are_no_arrays_are_kept_and_have_no_axes():
    params = W | {"activation": jnp.tanh, "rate": 0.5, "count": jnp.asarray(3)}

    def fn(params, x, options):
        y = params["activation"](x @ params["hidden"]) @ params["head"] * params["rate"]
        return y if options["flag"] else y[:1]

    assert notation(fn, params, X, {"flag": True}) == FOUND | {"activation": "", "rate": "", "count": ""}


def test_integer_weights_stay_fixed():
    found = notation(lambda p, x: x @ p["hidden"] @ (p["head"] * p["mask"]), W | {"mask": jnp.ones((3, 2))}, X)
    assert found["mask"] == "hidden head.out!"
    mask = jnp.asarray([[1, 0], [1, 1], [0, 1]])
    found = notation(lambda p, x: x @ p["hidden"] @ (p["head"] * p["mask"].astype(jnp.float32)), W | {"mask": mask}, X)
    assert found == {"head": "hidden.out! mask.out!", "hidden": "hidden.in! hidden.out!", "mask": "hidden.out! mask.out!"}


def test_an_unused_weight_is_permuted_by_itself():
    assert notation(two_layers, W | {"unused": normal(5, 3, 3)}, X) == FOUND | {"unused": "unused.in unused@unused.in"}


def test_shapes_without_values():
    shapes = jax.eval_shape(lambda: W)
    assert notation(two_layers, shapes, X) == FOUND
    assert notation(two_layers, shapes, jax.ShapeDtypeStruct((5, 4), jnp.float32), check=False) == FOUND
    with pytest.raises(ValueError, match="give arrays, or check=False"):
        infer_spec(two_layers, shapes, jax.ShapeDtypeStruct((5, 4), jnp.float32))


def test_rank_0_size_1_empty_and_bfloat16():
    params = {"scale": jnp.asarray(2.0), "thin": normal(0, 4, 1), "none": jnp.zeros((0, 3)), "out": normal(1, 1, 3)}

    def fn(params, x):
        return params["scale"] * (x @ params["thin"]) @ params["out"] + jnp.sum(params["none"], axis=0)[None]

    assert notation(fn, params, X) == {"none": "none.in out.out!", "out": "1 out.out!", "scale": "", "thin": "thin.in! 1"}
    assert notation(two_layers, jax.tree.map(lambda w: w.astype(jnp.bfloat16), W), X.astype(jnp.bfloat16)) == FOUND


def test_no_leaves():
    with pytest.raises(SpecError, match="no leaves"):
        infer_spec(lambda params: 0.0, {})


# Warnings and the check.


def test_an_unknown_primitive_pins_what_it_touches_and_is_named_once():
    params = W | {"factor": normal(3, 3, 3)}

    def in_numpy(matrix):
        return jax.pure_callback(np.tanh, jax.ShapeDtypeStruct(matrix.shape, matrix.dtype), matrix)

    def fn(params, x):
        factor = in_numpy(params["factor"] @ params["factor"].T)
        return x @ params["hidden"] @ factor @ in_numpy(jnp.eye(3) * factor[0, 0]) @ params["head"]

    with pytest.warns(UserWarning, match=r"no rule for: pure_callback\. ") as caught:
        found = notation(fn, params, X)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert linecache.getline(__file__, caught[0].lineno).strip().startswith("spec = infer_spec(")
    assert found["hidden"] == "hidden.in! hidden.out!"
    assert found["factor"].split()[0].endswith("!")


def test_a_group_that_fails_the_check_is_fixed_with_a_warning(monkeypatch):
    monkeypatch.setitem(rules.RULES, "cumsum", lambda trace, equation, operand: operand)  # a wrong rule

    def fn(params, x):
        return jnp.cumsum(x @ params["hidden"], axis=1) @ params["head"] @ params["last"]

    params = W | {"last": normal(3, 2, 3)}
    with pytest.warns(UserWarning, match=r"changes under permutations of \['hidden'\]"):
        found = infer_spec(fn, params, X, key=jax.random.key(1))
    assert found.notation("hidden") == "hidden.in! hidden!"
    assert found.notation("last") == "head last.out!"
    assert infer_spec(fn, params, X, check=False).notation("hidden") == "hidden.in! hidden"


def test_the_check_does_not_stop_at_symmetric_initial_values(monkeypatch):
    """With zero biases, or unit scales, a wrong rule for either would go unnoticed at the params themselves."""
    monkeypatch.setitem(rules.RULES, "cumsum", lambda trace, equation, operand: operand)
    params = W | {"bias": jnp.zeros(3), "scale": jnp.ones(3)}

    def fn(params, x):
        h = x @ params["hidden"] * params["scale"][None] + jnp.cumsum(params["bias"])[None]
        return h @ params["head"]

    with pytest.warns(UserWarning, match="changes under permutations"):
        infer_spec(fn, params, X)


def test_a_value_that_is_not_finite_cannot_be_checked():
    with pytest.warns(UserWarning, match="not finite"):
        infer_spec(lambda params, x: two_layers(params, x) / 0.0, W, X)


# The table.


# In a process of its own, as other libraries add to the tables. Nothing public lists every primitive.
PRIMITIVES_OF_JAX = """
import jax.extend.core.primitives, jax.scipy, jax.nn
from jax._src.interpreters import batching, mlir
lowered = {primitive for table in (mlir._lowerings, *mlir._platform_specific_lowerings.values()) for primitive in table}
listed = {item for item in vars(jax.extend.core.primitives).values() if isinstance(item, jax.extend.core.Primitive)}
print(*{primitive.name for primitive in lowered | listed | set(batching.fancy_primitive_batchers)})
"""


# Without a rule on purpose, by reason: all that they touch is pinned, with a warning.
_NOT_JAX = """
    call_exported cudnn_fusion custom_partitioning dot_product_attention_bwd dot_product_attention_bwd_wrapper
    dot_product_attention_fp8_bwd dot_product_attention_fp8_bwd_wrapper dot_product_attention_fp8_fwd
    dot_product_attention_fp8_fwd_wrapper dot_product_attention_fwd dot_product_attention_fwd_wrapper ffi_call io_callback
    pure_callback scaled_dot scaled_matmul scaled_matmul_wrapper
"""
_REFERENCES = "addupdate core_map create_linear empty2 freeze get new_ref pin run_state swap unpin"  # written here, read there
_BY_DEVICE = "all_to_all pbroadcast_dynamic precv psend ragged_all_to_all"
_NEVER_TRACED = """
    after_all all_gather_done all_gather_reduced_start all_gather_start all_to_all_done all_to_all_start broadcast_to
    call_hi_primitive_linearized custom_lin dim_as_value dimension_size eval_jaxpr from_edtype iota_2x32_shape pbroadcast_done
    pbroadcast_start philox2x32 philox4x32 ppermute_done ppermute_start psum_done psum_invariant_start psum_start
    reduce_scatter_done reduce_scatter_start select_and_scatter shape_assertion stage threefry4x32 tie to_edtype unreachable
    unreduced_psum_start unreduced_reduce_scatter_start
"""
PINNED = frozenset(f"{_NOT_JAX} {_REFERENCES} {_BY_DEVICE} {_NEVER_TRACED} approx_top_k linear_call".split())


def test_every_primitive_of_jax_has_a_rule_or_is_pinned_on_purpose():
    process = subprocess.run([sys.executable, "-c", PRIMITIVES_OF_JAX], capture_output=True, text=True, check=True)
    names = set(process.stdout.split())
    assert len(names) > 200
    assert sorted(names - set(rules.RULES) - PINNED) == []
    assert sorted(PINNED & set(rules.RULES)) == []


def test_losses_that_contain_gradients_keep_their_symmetry():
    """What derivatives of common functions are made of."""
    functions = [jnp.tanh, jax.nn.gelu, jax.nn.softplus, jnp.log2, jax.scipy.special.ndtri, jax.nn.silu, jax.scipy.special.erf]

    def fn(params, x):
        def energy(h):
            return sum(jnp.sum(f(0.1 * jnp.abs(h) + 0.1)) for f in functions)

        h = x @ params["hidden"]
        return jax.grad(energy)(h) @ params["head"]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert notation(fn, W, X) == FOUND


# Rules, one at a time: function, notation of `a`, notation of `b`. `a` and `b` are weights of [6], `x` is data of [6].


def shared_zeros(p, x):
    zeros = jnp.zeros(6)
    return jnp.sum(jnp.sin(p["a"] + zeros)) * jnp.sum(jnp.cos(p["b"] + zeros))


def diagonal(p, x):
    rows, columns = (jax.lax.broadcasted_iota(jnp.int32, (6, 6), axis) for axis in (0, 1))
    return jnp.sum(jnp.where(rows == columns, p["a"][None], 0.0) ** 2 * p["b"][:, None])


def carried(p, x):
    _, states = jax.lax.scan(lambda c, t: (jnp.sin(c + p["a"] * t), c), jnp.zeros(6), x)
    return jnp.sum(states * p["b"][None])


def split_two_ways(p, x):
    return jnp.sum(jnp.max(p["a"].reshape(2, 3), axis=0) * p["b"].reshape(3, 2)[:, 0])


RULE_CASES = {
    "sum": (lambda p, x: jnp.sum(p["a"]), "a", "b"),
    "product": (lambda p, x: jnp.sum(p["a"] * p["b"]), "a", "a"),
    "outer product": (lambda p, x: jnp.sum(jnp.sin(p["a"][:, None] * p["b"][None])), "a", "b"),
    "data": (lambda p, x: jnp.sum(p["a"] * x) + jnp.sum(p["b"]), "a!", "b"),
    "output": (lambda p, x: (p["a"], jnp.sum(p["b"])), "a!", "b"),
    "uniform constant": (lambda p, x: jnp.sum(jnp.sin(p["a"] + np.full(6, 0.3, np.float32))), "a", "b"),
    "other constant": (lambda p, x: jnp.sum(jnp.sin(p["a"] + np.linspace(0, 1, 6, dtype=np.float32))), "a!", "b"),
    "constant uniform in one axis": (
        lambda p, x: jnp.sum(jnp.sin(p["a"][:, None] * p["b"][None] + np.repeat(np.arange(6.0), 6).reshape(6, 6).astype("f"))),
        "a!",
        "b",
    ),
    "identity matrix": (diagonal, "a", "a"),
    "positions": (lambda p, x: jnp.sum(jnp.where(jnp.arange(6) < 3, p["a"], 0.0)), "a!", "b"),
    "shared zeros": (shared_zeros, "a", "b"),
    "sorted": (lambda p, x: jnp.sum(jnp.sort(p["a"]) * x) + jnp.sum(p["b"]), "a", "b"),
    "sorted with": (lambda p, x: jnp.sum(jax.lax.sort((p["a"], p["b"]), num_keys=1)[1] * x), "a!", "a!"),
    "halves": (lambda p, x: jnp.sum(p["a"][:3] * jnp.sin(p["a"][3:])) + jnp.sum(p["b"]), "(a.part0! a)", "b"),
    "every other": (lambda p, x: jnp.sum(p["a"][::2] * jnp.sin(p["a"][1::2])) + jnp.sum(p["b"]), "(a.out0 a!)", "b"),
    "unequal parts": (lambda p, x: jnp.sum(p["a"][:5]) + jnp.sum(p["b"]), "(a | 1)", "b"),
    "parts, then pinned": (lambda p, x: jnp.sum(p["a"][:3] * x[3:]) + jnp.sum(p["b"]), "(a! | a)", "b"),
    "joined": (lambda p, x: jnp.sum(jnp.sin(jnp.concatenate([p["a"], p["b"]]) @ np.ones((12, 2), "f"))), "a", "b"),
    "joined both ways": (lambda p, x: jnp.sum(jnp.sin(jnp.concatenate([p["a"], p["b"]]) * jnp.concatenate([p["b"], p["a"]]))), "a", "a"),
    "joined at other places": (
        lambda p, x: jnp.sum(jnp.concatenate([p["a"], p["b"][:2]]) * jnp.concatenate([p["b"][2:], p["a"][:4]])),
        "(b.out | b | b.out)", "(b | b.out | b)",
    ),
    "joined with data": (lambda p, x: jnp.sum(jnp.concatenate([p["a"], x])) + jnp.sum(p["b"]), "a", "b"),
    "neighbours": (lambda p, x: jnp.sum(jnp.sin(p["a"][1:] * p["a"][:-1])) + jnp.sum(p["b"]), "a!", "b"),
    "all but some": (lambda p, x: jnp.sum(jnp.sin(p["a"][1:] * p["b"][:5])), "(1 | a)", "(a | 1)"),
    "map": (lambda p, x: jnp.sum(jax.lax.map(lambda row: row[0] * jnp.sin(row[1]), (p["a"], p["b"]))), "a", "a"),
    "scan": (lambda p, x: jax.lax.scan(lambda c, a: (jnp.sin(c + a), None), 0.0, p["a"])[0] + jnp.sum(p["b"]), "a!", "b"),
    "carry": (carried, "a", "a"),
    "while": (lambda p, x: jnp.sum(jax.lax.while_loop(lambda c: jnp.sum(c) < 9, lambda c: c + p["a"] ** 2, p["b"])), "a", "a"),
    "cond": (lambda p, x: jnp.sum(jax.lax.cond(x[0] > 0, lambda: p["a"], lambda: p["b"]) ** 2), "a", "a"),
    "reshaped": (split_two_ways, "(a.out0@a a)", "(a b!)"),
    "clashing factors": (lambda p, x: jnp.sum(p["a"].reshape(2, 3).T * p["b"].reshape(3, 2)), "(a.out0 a@a.out0)", "(a@a.out0 a.out0)"),
    "interleaved": (lambda p, x: jnp.sum(p["a"].reshape(2, 3).reshape(3, 2)) + jnp.sum(p["b"]), "(a.out0! a!)", "b"),
    "written": (lambda p, x: jnp.sum(p["a"].at[2].set(1.0) ** 2 * p["b"]), "a!", "a!"),
    "padded": (lambda p, x: jnp.sum(jnp.sin(jnp.pad(p["a"], 1))) + jnp.sum(p["b"]), "a", "b"),
    "padded, then multiplied": (lambda p, x: jnp.sum(jnp.sin(jnp.pad(p["a"][:4], (0, 2)) * p["b"])), "(a | a.out)", "(a | b)"),
    "padded between": (lambda p, x: jnp.sum(jnp.sin(jax.lax.pad(p["a"], 0.0, [(0, 0, 1)]))) + jnp.sum(p["b"]), "a!", "b"),
    "transformed": (lambda p, x: jnp.sum(jnp.abs(jnp.fft.rfft(p["a"])) ** 3) + jnp.sum(p["b"]), "a!", "b"),
    "dead code": (lambda p, x: (jnp.cumsum(p["a"]), jnp.sum(p["a"]) * jnp.sum(p["b"]))[1], "a", "b"),
    "gradient": (lambda p, x: jnp.sum(jax.grad(lambda a: jnp.sum(jnp.sin(a) * p["b"]))(p["a"]) ** 2), "a", "a"),
    "barrier": (lambda p, x: jnp.sum(jax.lax.optimization_barrier((p["a"], p["b"]))[0]) * jnp.sum(p["b"]), "a", "b"),
}  # fmt: skip


@pytest.mark.parametrize("case", RULE_CASES)
def test_rule(case):
    fn, a, b = RULE_CASES[case]
    found = notation(fn, {"a": normal(0, 6), "b": normal(1, 6)}, normal(2, 6))
    plain = {name: re.sub(r"\.(out|part|step)!", "!", text) for name, text in found.items()}
    assert plain == {"a": a, "b": b}


def test_a_one_by_one_convolution_leaves_positions_free():
    params = {"image": normal(0, 1, 5, 7, 2), "kernel": normal(1, 1, 1, 2, 3)}

    def fn(params):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jnp.sum(
            jnp.exp(jax.lax.conv_general_dilated(params["image"], params["kernel"], (1, 1), "SAME", dimension_numbers=numbers))
        )

    found = infer_spec(fn, params)
    assert not any(factor.fixed for path in found.paths for factor in found.factors(path))
    assert len(found.names) == 4


def test_a_dropout_mask_fixes_the_units_that_it_is_drawn_for():
    def fn(params, key, x, rate):
        h = jnp.tanh(x @ params["hidden"])
        kept = jax.random.bernoulli(key, 1.0 - rate, h.shape) if rate else jnp.ones_like(h, bool)
        return jnp.where(kept, h, 0.0) @ params["head"]

    assert notation(fn, W, jax.random.key(0), X, 0.0) == FOUND
    assert notation(fn, W, jax.random.key(0), X, 0.5)["head"] == "hidden.out! head.out!"


def test_top_k_fixes_the_experts_unless_ties_are_ignored():
    params = {"router": normal(0, 4, 3), "up": normal(1, 3, 4, 7), "down": normal(2, 3, 7, 2)}
    spec = infer_spec(top_2_of_experts, params, X)
    assert spec.notation("router") == "router.in! router.out!"
    assert len(spec.permutable) == 1
    assert infer_spec(top_2_of_experts, params, X, ignore_ties=True).notation("router") == "router.in! router"


def test_an_index_that_is_computed_with_is_fixed_even_where_ties_are_ignored():
    def fn(params, x):
        best = jnp.argmax(x @ params["hidden"], axis=-1)
        return best.astype(jnp.float32) @ jnp.ones(5) + jnp.sum(params["head"])

    assert notation(fn, W, X, ignore_ties=True)["hidden"] == "hidden.in! hidden.out!"

    def look_up(params, x):
        best = jnp.argmax(x @ params["hidden"], axis=-1)
        numbers = jax.lax.GatherDimensionNumbers(offset_dims=(1,), collapsed_slice_dims=(0,), start_index_map=(0,))
        return jax.lax.gather(params["head"], best[:, None], numbers, (1, 2))

    assert notation(look_up, W, X, ignore_ties=True) == FOUND
    assert notation(look_up, W, X)["hidden"] == "hidden.in! hidden.out!"


def test_a_key_may_be_closed_over():
    key = jax.random.key(3)
    found = notation(lambda p, x: two_layers(p, x + jax.random.normal(key, x.shape)), W, X)
    assert found == FOUND


def test_inference_takes_no_warning_from_functions_it_knows():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        infer_spec(lambda p, x: jax.debug.print("{}", p["hidden"][0, 0]) or two_layers(p, x), W, X)
