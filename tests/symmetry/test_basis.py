"""The plan: exactly the valid partitions, each once, in full rectangles."""

import math

import pytest

from lopt.symmetry.basis import make_plan, set_partitions, valid_partitions
from lopt.symmetry.spec import WeightSpec
from tests import brute_force

BELL = [1, 1, 2, 5, 15, 52, 203]

SPECS = {
    "mlp2": ({"k0": "i h", "b0": "h", "k1": "h o", "b1": "o"}, 32),
    "mlp3": ({"k0": "i h", "b0": "h", "k1": "h g", "b1": "g", "k2": "g o", "b2": "o"}, 62),
    "cnn": ({"k0": "a b i c", "b0": "c", "k1": "d e c f", "b1": "f", "k2": "f o", "b2": "o"}, 86),
    "rnn": ({"embed": "v e", "ff": "e h", "fb": "h", "rec": "h h", "rb": "h", "s0": "z h", "out": "h v", "ob": "v"}, 165),
    "rank3": ({"a": "h h h", "b": "h c h", "c": "c"}, 357),
    "scalars": ({"s": "", "one": "1", "v": "a"}, 1 * 4 + 1 * 4 + 2 - 2 + 2),
}


@pytest.mark.parametrize("n", range(6))
def test_set_partitions_are_counted_by_bell_numbers(n):
    found = list(set_partitions(list(range(n))))
    assert len(found) == len({frozenset(map(frozenset, p)) for p in found}) == BELL[n]


def test_blocks_hold_one_name():
    assert set(valid_partitions("aab")) == {((0, 1), (2,)), ((0,), (1,), (2,))}


@pytest.mark.parametrize("name", SPECS)
def test_terms_are_the_valid_partitions_each_once(name):
    tree, count = SPECS[name]
    spec = WeightSpec.parse(tree)
    plan = make_plan(spec)
    assert plan.num_terms == count
    for output in spec.paths:
        terms = plan.terms(output)
        found = [(term.input, term.partition) for term in terms]
        names = {path: [factor.name for factor in spec.factors(path)] for path in spec.paths}
        expected = {(path, p) for path in spec.paths for p in brute_force.valid_partitions(names[output], names[path])}
        assert len(found) == len(expected)
        assert set(found) == expected
        for term in terms:
            assert term.view < len(plan.groups[term.group].views)
            assert term.target < len(plan.groups[term.group].targets)


def test_number_of_terms_is_a_product_of_bell_numbers():
    spec = WeightSpec.parse({"x": "a a b", "y": "a b b c"})
    names = {path: [factor.name for factor in spec.factors(path)] for path in spec.paths}
    expected = sum(
        math.prod(BELL[names[out].count(n) + names[source].count(n)] for n in spec.names)
        for out in spec.paths
        for source in spec.paths
    )
    assert make_plan(spec).num_terms == expected


def test_the_plan_of_a_transformer_shares_few_views():
    block = {"q": "e a", "k": "e a", "v": "e a", "o": "a e", "up": "e m", "down": "m e", "scale": "e", "up_bias": "m"}
    plan = make_plan(
        WeightSpec.parse(
            {f"h{i}": {n: t.replace("a", f"a{i}").replace("m", f"m{i}") for n, t in block.items()} for i in range(2)}
        )
    )
    assert sum(len(group.views) for group in plan.groups) < plan.num_terms / 8


def test_fixed_names_must_be_relaxed_first():
    with pytest.raises(ValueError, match=r"\['pixels'\] are fixed: pass spec.relax\(\)"):
        make_plan(WeightSpec.parse({"w": "pixels! hidden"}))


def test_plans_are_hashable_and_equal():
    spec = WeightSpec.parse({"w": "a b"})
    assert hash(make_plan(spec)) == hash(make_plan(spec))
