"""Weight specs: the notation, what they refuse, and the group that they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.symmetry.spec import SpecError, WeightSpec, named_leaves

MLP = {"dense0": {"kernel": "pixels! hidden", "bias": "hidden"}, "dense1": {"kernel": "hidden classes!", "bias": "classes!"}}


def mlp_params():
    return {
        "dense0": {"kernel": jnp.arange(12.0).reshape(4, 3), "bias": jnp.arange(3.0)},
        "dense1": {"kernel": jnp.arange(6.0).reshape(3, 2), "bias": jnp.arange(2.0)},
    }


def test_notation_reads_and_prints():
    spec = WeightSpec.parse({"head": "(h! w! c) classes!", "scale": "1 c", "count": "", "list": ["a a", "b"]})
    assert spec.paths == ("count", "head", "list/0", "list/1", "scale")
    assert spec.names == ("a", "b", "c", "classes", "h", "w")
    assert spec.permutable == ("a", "b", "c")
    assert [spec.notation(path) for path in spec.paths] == ["", "(h! w! c) classes!", "a a", "b", "1 c"]
    assert str(spec).splitlines()[1] == "head    (h! w! c) classes!"


@pytest.mark.parametrize(
    ("tree", "paths"),
    [
        ({"a/b": {"w": 1}, "c": 2}, ["a/b/w", "c"]),
        ({"a/b": {"w": 1}, "a": {"b/w": 2, "c": 3}}, ["a/b%2Fw", "a/c", "a%2Fb/w"]),
        ({"l": [1], "l/0": 2, "l%2F0": 3, "l%2": 4}, ["l/0", "l%2", "l%252F0", "l%2F0"]),
        ({"": {"": 1}, "/": 2}, ["/", "%2F"]),
    ],
)
def test_no_two_leaves_have_one_path(tree, paths):
    assert [path for path, _ in named_leaves(tree)] == paths
    flat = {path: leaf for path, leaf in named_leaves(tree)}
    assert sorted(named_leaves(flat)) == sorted(named_leaves(tree))  # paths may be keys


def test_a_spec_tells_leaves_apart_whose_keys_hold_a_slash():
    spec = WeightSpec.parse({"a": {"b/w": "x! y"}, "a/b": {"w": "y"}})
    params = {"a": {"b/w": jnp.arange(6.0).reshape(2, 3)}, "a/b": {"w": jnp.arange(3.0)}}
    assert spec.sizes(params) == {"x": 2, "y": 3}
    moved = spec.permute(params, {"y": np.asarray([2, 0, 1])})
    np.testing.assert_array_equal(moved["a"]["b/w"], [[2, 0, 1], [5, 3, 4]])
    np.testing.assert_array_equal(moved["a/b"]["w"], [2, 0, 1])


def test_leaves_that_are_written_alike_are_named():
    with pytest.raises(ValueError, match=r"\['1'\] and .*\[1\] both have the path 'a/1'"):
        named_leaves({"a": Either({"1": 1}, [0, 2])})


@jax.tree_util.register_pytree_with_keys_class
class Either:
    """A node whose children are those of two containers."""

    def __init__(self, one, other):
        self.children = {jax.tree_util.DictKey(key): x for key, x in one.items()}
        self.children |= {jax.tree_util.SequenceKey(i): x for i, x in enumerate(other)}

    def tree_flatten_with_keys(self):
        return list(self.children.items()), tuple(self.children)

    @classmethod
    def tree_unflatten(cls, keys, children):
        found = cls({}, [])
        found.children = dict(zip(keys, children, strict=True))
        return found


def test_hashable_and_equal_by_value():
    assert hash(WeightSpec.parse(MLP)) == hash(WeightSpec.parse(MLP))
    assert WeightSpec.parse(MLP) == WeightSpec.parse(MLP)
    assert WeightSpec.parse(MLP) != WeightSpec.parse(MLP).relax()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(a b", r"leaf 'w'.*'\(' without '\)'"),
        ("a b)", r"leaf 'w'.*'\)' without '\('"),
        ("((a) b)", r"leaf 'w'.*nested"),
        ("a $", r"leaf 'w'.*cannot read '\$'"),
        ("2 a", r"leaf 'w'.*cannot read '2 a'"),
        (3, r"leaf 'w' is 3"),
    ],
)
def test_bad_notation_names_the_leaf(text, message):
    with pytest.raises(SpecError, match=message):
        WeightSpec.parse({"w": text})


def test_a_name_is_fixed_everywhere_or_nowhere():
    with pytest.raises(SpecError, match=r"'a' is fixed.*'v'.*'w'"):
        WeightSpec.parse({"v": "a", "w": "a!"})


def test_sizes_are_read_off_params():
    assert WeightSpec.parse(MLP).sizes(mlp_params()) == {"classes": 2, "hidden": 3, "pixels": 4}


def test_composed_axes_are_solved_from_each_other():
    spec = WeightSpec.parse({"conv": "kh! kw! c0 c1", "head": "(h! w! c1) classes!"}, h=2)
    params = {"conv": jnp.zeros((3, 3, 1, 5)), "head": jnp.zeros((2 * 4 * 5, 10))}
    assert spec.sizes(params) == {"c0": 1, "c1": 5, "classes": 10, "h": 2, "kh": 3, "kw": 3, "w": 4}


@pytest.mark.parametrize(
    ("tree", "sizes", "shapes", "message"),
    [
        ({"w": "a b"}, {}, {"w": (3,)}, r"leaf 'w' has shape \(3,\) of rank 1.*'a b' has 2 axes"),
        ({"w": "a a"}, {}, {"w": (3, 4)}, r"leaf 'w' of shape \(3, 4\) gives 'a' size 4, but it has size 3 by 'w'"),
        ({"w": "a"}, {}, {"v": (3,)}, r"no leaf for \['w'\]; no spec for \['v'\]"),
        ({"w": "(a b)"}, {}, {"w": (6,)}, r"leaf 'w'.*'\(a b\)' have no known size"),
        ({"w": "(a b)"}, {"a": 4}, {"w": (6,)}, r"leaf 'w' of shape \(6,\).*has size 6, which does not factor with {'a': 4}"),
        ({"w": "1 a"}, {}, {"w": (2, 3)}, r"leaf 'w' of shape \(2, 3\).*'1' has size 2"),
    ],
)
def test_params_that_do_not_fit_are_named(tree, sizes, shapes, message):
    params = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    with pytest.raises(SpecError, match=message):
        WeightSpec.parse(tree, **sizes).validate(params)


def test_unknown_sizes_and_names_are_refused():
    with pytest.raises(SpecError, match="sizes are given for \\['b'\\]"):
        WeightSpec.parse({"w": "a"}, b=3)
    with pytest.raises(SpecError, match="cannot relax \\['b'\\]"):
        WeightSpec.parse({"w": "a"}).relax("b")


def test_relax_frees_all_fixed_names_or_those_given():
    spec = WeightSpec.parse(MLP)
    assert spec.relax().permutable == ("classes", "hidden", "pixels")
    assert spec.relax("pixels").permutable == ("hidden", "pixels")


def test_permute_moves_every_axis_of_a_name():
    spec = WeightSpec.parse(MLP)
    moved = spec.permute(mlp_params(), {"hidden": [2, 0, 1]})
    np.testing.assert_array_equal(moved["dense0"]["kernel"], np.arange(12.0).reshape(4, 3)[:, [2, 0, 1]])
    np.testing.assert_array_equal(moved["dense0"]["bias"], [2, 0, 1])
    np.testing.assert_array_equal(moved["dense1"]["kernel"], np.arange(6.0).reshape(3, 2)[[2, 0, 1]])
    np.testing.assert_array_equal(moved["dense1"]["bias"], [0, 1])


def test_permute_within_a_composed_axis():
    spec = WeightSpec.parse({"w": "(h! c)", "b": "c"})
    moved = spec.permute({"w": jnp.arange(6), "b": jnp.arange(3)}, {"c": [1, 2, 0]})
    np.testing.assert_array_equal(moved["w"], [1, 2, 0, 4, 5, 3])


def test_permuting_twice_is_the_product():
    spec = WeightSpec.parse({"r": "h h", "b": "h"})
    params = {"r": jax.random.normal(jax.random.key(0), (5, 5)), "b": jnp.arange(5.0)}
    g, h = (spec.sample(jax.random.key(i), params) for i in (1, 2))
    product = {"h": jnp.take(g["h"], h["h"])}
    both = spec.permute(spec.permute(params, g), h)
    jax.tree.map(np.testing.assert_array_equal, both, spec.permute(params, product))


def test_permute_refuses_what_is_no_group_element():
    spec = WeightSpec.parse(MLP)
    with pytest.raises(SpecError, match="'hidden' is not a permutation of 3 indices"):
        spec.permute(mlp_params(), {"hidden": [0, 0, 1]})
    with pytest.raises(SpecError, match="'other', which no axis is named after"):
        spec.permute(mlp_params(), {"other": [0]})


def test_sample_leaves_fixed_names_alone_and_keeps_dtypes():
    spec = WeightSpec.parse({"w": "a! b", "n": "b"})
    params = {"w": jnp.zeros((2, 50), jnp.bfloat16), "n": jnp.arange(50)}
    element = spec.sample(jax.random.key(0), params)
    assert set(element) == {"b"}
    moved = spec.permute(params, element)
    assert (moved["w"].dtype, moved["n"].dtype) == (jnp.bfloat16, jnp.int32)
    assert not np.array_equal(moved["n"], np.arange(50))
    np.testing.assert_array_equal(np.sort(moved["n"]), np.arange(50))


def test_leaves_that_are_no_arrays_stay_where_nothing_moves_them():
    spec = WeightSpec.parse({"activation": "", "kernel": "a b"})
    moved = spec.permute({"activation": jnp.tanh, "kernel": jnp.arange(4.0).reshape(2, 2)}, {"a": [1, 0]})
    assert moved["activation"] is jnp.tanh
    assert moved["kernel"].tolist() == [[2, 3], [0, 1]]
