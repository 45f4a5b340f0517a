"""Which leaf is which: found for networks that differ in names alone, refused where it would be a guess, None where they differ."""

import pytest

from lopt.symmetry import SpecError, WeightSpec
from lopt.symmetry.match import match_leaves
from tasks.registry import task_configs

MLP = WeightSpec.parse(
    {"dense0": {"bias": "h0", "kernel": "pixels! h0"}, "dense1": {"bias": "classes!", "kernel": "h0 classes!"}}
)


def chain(depth, letter="w"):
    names = ["in!", *(f"u{i}" for i in range(depth - 1)), "out!"]
    return WeightSpec.parse({f"{letter}{i}": f"{names[i]} {names[i + 1]}" for i in range(depth)})


def test_other_names_in_another_order():
    spec = WeightSpec.parse({"a_head": "units y!", "b_head": "y!", "in": "x! units", "in_bias": "units"})
    assert match_leaves(spec, MLP) == {
        "a_head": "dense1/kernel",
        "b_head": "dense1/bias",
        "in": "dense0/kernel",
        "in_bias": "dense0/bias",
    }


def test_a_deep_chain_is_told_apart_from_its_ends():
    names = match_leaves(chain(9, "other"), chain(9))
    assert names == {f"other{i}": f"w{i}" for i in range(9)}


@pytest.mark.parametrize(
    "other",
    [
        chain(4),  # another depth
        WeightSpec.parse({"w0": "u0 in!", "w1": "u0 u1", "w2": "u1 out!"}),  # an axis elsewhere
        WeightSpec.parse({"w0": "in! u0", "w1": "u0 u0", "w2": "u0 out!"}),  # tied
        WeightSpec.parse({"w0": "in u0", "w1": "u0 u1", "w2": "u1 out!"}),  # not fixed
        WeightSpec.parse({"w0": "in! u0", "w1": "u0 u1", "w2": "u1"}),  # another rank
        WeightSpec.parse({"w0": "in! u0", "w1": "u0 u1", "w2": "u1 in!"}),  # two fixed axes of one name
    ],
)
def test_another_symmetry_does_not_match(other):
    assert match_leaves(other, chain(3)) is None
    assert match_leaves(chain(3), other) is None


def test_fixed_factors_that_stand_together_are_one_axis():
    spec = WeightSpec.parse({"b0": "h", "b1": "y!", "k0": "(rows! columns!) h", "k1": "h y!"}, rows=8)
    assert match_leaves(spec, MLP) == {"b0": "dense0/bias", "b1": "dense1/bias", "k0": "dense0/kernel", "k1": "dense1/kernel"}
    # A factor that another weight has too is an axis of its own.
    assert match_leaves(WeightSpec.parse({"b0": "h", "b1": "rows!", "k0": "(rows! columns!) h", "k1": "h rows!"}), MLP) is None


def test_leaves_that_play_the_same_part_are_not_guessed():
    norm = WeightSpec.parse({"scale": "e", "offset": "e", "kernel": "e out!"})
    other = WeightSpec.parse({"gamma": "e", "beta": "e", "kernel": "e out!"})
    with pytest.raises(SpecError, match=r"\['beta', 'gamma'\] play the same part.*\['offset', 'scale'\]; name them like these"):
        match_leaves(other, norm)
    same = WeightSpec.parse({"kernel": "units y!", "offset": "units", "scale": "units"})
    assert match_leaves(same, norm) == {path: path for path in same.paths}


@pytest.mark.parametrize("name", ["mlp", "cnn", "rnn", "transformer"])
def test_a_task_matches_itself(name):
    fields = {"dataset": "python_docs"} if name in ("rnn", "transformer") else {}
    spec = task_configs()[name](**fields).make().spec
    assert match_leaves(spec, spec) == {path: path for path in spec.paths}
