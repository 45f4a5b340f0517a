"""Equality of specs up to renaming."""

import pytest

from lopt.symmetry import WeightSpec
from lopt.symmetry.compare import same_group, same_up_to_names

SPEC = WeightSpec.parse({"k": "pixels! a", "b": "a", "r": "a a", "h": "(x! a) out!"})


def test_names_do_not_matter():
    assert same_up_to_names(SPEC, WeightSpec.parse({"k": "a! b", "b": "b", "r": "b b", "h": "(out! b) pixels!"}))


@pytest.mark.parametrize(
    "other",
    [
        {"k": "pixels a", "b": "a", "r": "a a", "h": "(x! a) out!"},  # one more is permutable
        {"k": "pixels! a", "b": "a", "r": "a c", "h": "(x! a) out!"},  # untied
        {"k": "pixels! a", "b": "a", "r": "a a", "h": "(pixels! a) out!"},  # tied
        {"k": "pixels! a", "b": "a", "r": "a a", "h": "(a x!) out!"},  # factors in another order
        {"k": "pixels! a", "b": "a", "r": "a a", "h": "xa! out!"},  # not split
        {"k": "pixels! a", "b": "a", "r": "a a"},  # a leaf less
        {"k": "pixels! a", "c": "a", "r": "a a", "h": "(x! a) out!"},  # a leaf of another name
    ],
)
def test_everything_else_does(other):
    assert not same_up_to_names(SPEC, WeightSpec.parse(other))
    assert not same_up_to_names(WeightSpec.parse(other), SPEC)


def test_given_sizes_must_agree_where_both_have_them():
    def heads(**sizes):
        return WeightSpec.parse({"q": "e (heads dim)"}, **sizes)

    renamed = WeightSpec.parse({"q": "e (n d)"}, n=4)
    assert same_up_to_names(heads(heads=4), renamed)
    assert same_up_to_names(heads(), renamed)
    assert same_up_to_names(heads(dim=8), renamed)
    assert not same_up_to_names(heads(heads=2), renamed)


def test_the_group_does_not_see_fixed_names():
    other = WeightSpec.parse({"k": "(rows! columns!) a", "b": "a", "r": "a a", "h": "(q! r! a) q!"})
    assert same_group(SPEC, other)
    assert not same_up_to_names(SPEC, other)


@pytest.mark.parametrize(
    "other",
    [
        {"k": "pixels a", "b": "a", "r": "a a", "h": "(x! a) out!"},  # one more is permutable
        {"k": "pixels! a", "b": "a", "r": "a c", "h": "(x! a) out!"},  # untied
        {"k": "pixels! a", "b": "a", "r": "a a", "h": "(a x!) out!"},  # factors in another order
        {"k": "pixels! a", "b": "a", "r": "a a", "h": "xa! out!"},  # not split
        {"k": "pixels! a!", "b": "a!", "r": "a! a!", "h": "(x! a!) out!"},  # all fixed
    ],
)
def test_the_group_sees_what_moves(other):
    assert not same_group(SPEC, WeightSpec.parse(other))


def test_a_name_twice_in_one_axis_is_two_factors():
    assert not same_group(WeightSpec.parse({"w": "(a a)"}, a=2), WeightSpec.parse({"w": "(a)"}, a=2))


def test_sizes_of_fixed_names_do_not_count_for_the_group():
    assert same_group(WeightSpec.parse({"w": "(x! a)"}, x=2), WeightSpec.parse({"w": "(x! a)"}, x=3, a=4))
    assert not same_group(WeightSpec.parse({"w": "(x! a)"}, a=2), WeightSpec.parse({"w": "(x! a)"}, a=4))
