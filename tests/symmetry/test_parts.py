"""Axes made of parts, one behind the other: notation, sizes, group, and the blocks that leaves with such axes are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.symmetry import SpecError, WeightSpec, infer_spec, rules
from lopt.symmetry.basis import make_plan
from lopt.symmetry.compare import numbered, same_group, same_up_to_names, without_single_indices
from lopt.symmetry.describe import count_layer, describe
from lopt.symmetry.match import match_leaves
from tests.symmetry.networks import normal

LSTM = {"embed": "v! e", "kernel": "(e | h) (gates! h)", "bias": "(gates! h)", "out": "h o!"}


def lstm_params():
    return {"embed": normal(0, 3, 2), "kernel": normal(1, 5, 12), "bias": normal(2, 12), "out": normal(3, 3, 4)}


def test_notation_reads_and_prints():
    text = {"w": "(a b! | 1 |c@a d!) (e|f)", "v": "( a | a )"}
    with pytest.raises(SpecError, match=r"spec leaf 'w': 'c@a' is nested in 'a', which the leaf has no axis of"):
        WeightSpec.parse(text)
    spec = WeightSpec.parse(text | {"w": "(a b! | 1 |c d!) (e|f)"})
    assert [spec.notation(path) for path in spec.paths] == ["(a | a)", "(a b! | 1 | c d!) (e | f)"]
    assert WeightSpec.parse({path: spec.notation(path) for path in spec.paths}) == spec
    assert spec.permutable == ("a", "c", "e", "f")
    assert hash(spec) == hash(WeightSpec.parse({path: spec.notation(path) for path in spec.paths}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a | b", r"leaf 'w': '\|' outside '\(' and '\)' in 'a \| b'"),
        ("(a | ) b", r"leaf 'w': nothing beside '\|' in '\(a \| \) b'; a part of size one is written '1'"),
        ("(| a)", r"leaf 'w': nothing beside '\|'"),
        ("(a | b", r"leaf 'w'.*'\(' without '\)'"),
        ("(a | (b c))", r"leaf 'w'.*nested"),
    ],
)
def test_bad_notation_names_the_leaf(text, message):
    with pytest.raises(SpecError, match=message):
        WeightSpec.parse({"w": text})


def test_sizes_of_parts_come_from_other_leaves_from_the_whole_or_are_given():
    spec = WeightSpec.parse(LSTM, gates=4)
    assert spec.sizes(lstm_params()) == {"e": 2, "gates": 4, "h": 3, "o": 4, "v": 3}
    assert WeightSpec.parse({"w": "(a | b c | b)", "b": "b"}, a=7).sizes({"w": jnp.zeros(13), "b": jnp.zeros(2)}) == {
        "a": 7,
        "b": 2,
        "c": 2,
    }
    assert WeightSpec.parse({"w": "(a | a b | 1)"}, b=3).sizes({"w": jnp.zeros(9)}) == {"a": 2, "b": 3}


@pytest.mark.parametrize(
    ("tree", "sizes", "shapes", "message"),
    [
        (
            {"w": "(a | b)"},
            {},
            {"w": (6,)},
            r"leaf 'w': the factors of '\(a \| b\)' have no known size; give all but one of them",
        ),
        ({"w": "(a | b)"}, {"a": 7}, {"w": (6,)}, r"leaf 'w' of shape \(6,\): the axis '\(a \| b\)' has size 6, .* {'a': 7}"),
        ({"w": "(a | a)"}, {}, {"w": (5,)}, r"leaf 'w' of shape \(5,\): the axis '\(a \| a\)' has size 5"),
        ({"w": "(a | b)", "v": "a b"}, {}, {"w": (6,), "v": (2, 3)}, r"leaf 'w' of shape \(6,\).*{'a': 2, 'b': 3}"),
        ({"w": "(a | b) c"}, {}, {"w": (6,)}, r"leaf 'w' has shape \(6,\) of rank 1.*'\(a \| b\) c' has 2 axes"),
    ],
)
def test_params_that_do_not_fit_are_named(tree, sizes, shapes, message):
    params = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    with pytest.raises(SpecError, match=message):
        WeightSpec.parse(tree, **sizes).validate(params)


def test_permute_moves_each_part_by_its_own_name():
    spec = WeightSpec.parse({"w": "(a | b! | 1 | a) c"}, b=2)
    w = jnp.arange(9)[:, None] * jnp.asarray([1, 10])[None]
    moved = spec.permute({"w": w}, {"a": [1, 2, 0], "c": [1, 0]})
    assert moved["w"][:, 1].tolist() == [1, 2, 0, 3, 4, 5, 7, 8, 6]
    assert moved["w"][:, 0].tolist() == [10, 20, 0, 30, 40, 50, 70, 80, 60]
    assert set(spec.sample(jax.random.key(0), {"w": w})) == {"a", "c"}


def test_nested_names_move_within_their_block():
    spec = WeightSpec.parse({"w": "(n d@n | e) n"}, e=1)
    w = jnp.arange(10).reshape(5, 2)
    moved = spec.permute({"w": w}, {"d": [[1, 0], [0, 1]]})
    assert moved["w"].tolist() == [[2, 3], [0, 1], [4, 5], [6, 7], [8, 9]]


def test_blocks_are_leaves_of_their_own():
    spec = WeightSpec.parse({"b": "c", "w": "(a | b) (c | d)"}, a=1)
    params = {"b": jnp.arange(2.0), "w": jnp.arange(12.0).reshape(3, 4)}
    assert str(spec.blocks) == "b       c\nw[0,0]  a c\nw[0,1]  a d\nw[1,0]  b c\nw[1,1]  b d"
    blocks = spec.split(params, spec.sizes(params))
    assert blocks["w[1,0]"].tolist() == [[4, 5], [8, 9]]
    assert spec.blocks.sizes(blocks) == spec.sizes(params)
    jax.tree.map(np.testing.assert_array_equal, spec.join(jnp, blocks), params)
    assert spec.blocks.blocks is spec.blocks
    plain = WeightSpec.parse({"w": "a b"})
    assert plain.blocks is plain
    with pytest.raises(SpecError, match=r"leaf 'w' \('\(a \| b\) \(c \| d\)'\) has an axis made of parts"):
        make_plan(spec)
    assert spec.without("c", "d") == WeightSpec.parse({"b": "", "w[0,0]": "a", "w[0,1]": "a", "w[1,0]": "b", "w[1,1]": "b"})


def test_blocks_have_paths_of_their_own():
    with pytest.raises(SpecError, match=r"leaves 'w' and 'w\[1\]' both have a block of the path 'w\[1\]'"):
        WeightSpec.parse({"w": "(a | b)", "w[1]": "c"})
    assert WeightSpec.parse({"w": "a", "w[1]": "c"}).paths == ("w", "w[1]")


def test_relax_keeps_parts():
    assert WeightSpec.parse({"w": "(x! | h) o!"}).relax() == WeightSpec.parse({"w": "(x | h) o"})


def test_comparisons():
    spec = WeightSpec.parse({"v": "h", "w": "(x! | h) o!"})
    assert str(numbered(spec)) == "v  n0\nw  (n1! | n0) n2!"
    assert same_up_to_names(spec, WeightSpec.parse({"v": "u", "w": "(y! | u) z!"}))
    for other in ("(h | x!) o!", "(x | h) o!", "(x! h) o!", "h o!", "(x! | h | 1) o!"):
        assert not same_up_to_names(spec, WeightSpec.parse({"v": "h", "w": other}))
        assert not same_group(spec, WeightSpec.parse({"v": "h", "w": other}))
    assert same_group(spec, WeightSpec.parse({"v": "h", "w": "(y! z! | x! | h) h0!"}))
    assert same_group(WeightSpec.parse({"w": "(x! | 1 | y!)"}), WeightSpec.parse({"w": "z!"}))
    single = WeightSpec.parse({"v": "h", "w": "(x! | h) o!"})
    assert str(without_single_indices(single, {"v": np.zeros(1), "w": np.zeros((4, 2))})) == "v  1\nw  (x! | 1) o!"


def test_leaves_are_matched_by_their_blocks():
    known = WeightSpec.parse(LSTM)
    other = WeightSpec.parse({"a": "(p! u)", "b": "(x | u) (p! u)", "c": "c! x", "d": "u y!"})
    assert match_leaves(other, known) == {"a": "bias", "b": "kernel", "c": "embed", "d": "out"}
    assert match_leaves(WeightSpec.parse({"a": "(p! u)", "b": "(u | x) (p! u)", "c": "c! x", "d": "u y!"}), known) is None
    assert match_leaves(WeightSpec.parse({"a": "(p! u)", "b": "x (p! u)", "c": "c! x", "d": "u y!"}), known) is None


def test_tables_show_leaves_and_count_blocks():
    spec = WeightSpec.parse(LSTM, gates=4)
    found, layer = describe(spec, lstm_params()), count_layer(spec)
    rows = {row.path: row for row in found.leaves}
    assert rows["kernel"].axes == "(e | h) (gates! h)"
    assert rows["kernel"].terms == layer.terms["kernel[0]"] + layer.terms["kernel[1]"] > 0
    names = {row.name: row for row in found.names}
    assert (names["h"].size, names["h"].leaves) == (3, ("bias", "kernel", "out"))


def test_the_check_moves_parts(monkeypatch):
    """A wrong rule for one part is noticed, and fixes that part alone."""
    monkeypatch.setitem(rules.RULES, "cumsum", lambda trace, equation, operand: operand)

    def fn(params, x):
        h = x @ params["hidden"]
        both = jnp.concatenate([jnp.cumsum(h, axis=1), jnp.sin(x @ params["other"])], axis=1)
        return jnp.tanh(both @ params["out"]) @ params["last"]

    params = {"hidden": normal(0, 4, 5), "other": normal(1, 4, 6), "out": normal(2, 11, 3), "last": normal(3, 3, 2)}
    with pytest.warns(UserWarning, match=r"changes under permutations of \['hidden'\]"):
        found = infer_spec(fn, params, normal(4, 7, 4))
    assert found.notation("out") == "(hidden! | other) out"


def test_sizes_are_kept_where_parts_stand_nowhere_else():
    def fn(params):
        return jnp.sum(jnp.sin(params["w"][:4])) * jnp.sum(params["w"][4:] ** 2)

    found = infer_spec(fn, {"w": normal(0, 9)})
    assert found.notation("w") == "(w | w.out)"
    assert dict(found.known_sizes) == found.sizes({"w": normal(0, 9)}) == {"w": 4, "w.out": 5}
