"""Figures and tables from loss curves, against curves whose figures are known."""

import dataclasses
import io
import math

import numpy as np
import pytest
from rich.console import Console

from lopt.evaluation.summary import Curve, Estimate, markdown_table, rich_table, steps_to_reach, summarize, trailing_mean


def brute_steps(losses: np.ndarray, target: float, window: int) -> list[float]:
    found = []
    for seed in losses:
        reached = [n for n in range(window, len(seed) + 1) if np.mean(seed[n - window : n]) <= target]
        found.append(float(reached[0]) if reached else math.nan)
    return found


def test_steps_to_reach_are_counted_as_defined():
    losses = np.array([[5.0, 4, 3, 2, 1, 1], [5, 5, 5, 5, 5, 5], [1, 1, 9, 9, 9, 9], [5, 5, 5, 5, 5, 1]])
    np.testing.assert_array_equal(steps_to_reach(losses, 2.5, 2), [4, np.nan, 2, np.nan])
    np.testing.assert_array_equal(steps_to_reach(losses, 2.5, 1), [4, np.nan, 1, 6])
    np.testing.assert_array_equal(steps_to_reach(losses, 3.0, 2), [4, np.nan, 2, 6])
    assert np.isnan(steps_to_reach(losses, math.nan, 2)).all()


@pytest.mark.parametrize("window", [1, 3, 7])
def test_steps_to_reach_agree_with_brute_force_where_some_losses_are_not_finite(window):
    rng = np.random.default_rng(0)
    losses = np.exp(-np.linspace(0, 2, 40))[None] + 0.3 * rng.standard_normal((20, 40))
    losses[3, 5], losses[4, 7:], losses[5, 0], losses[6, 20] = np.nan, np.inf, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        expected = brute_steps(losses, 0.3, window)
    np.testing.assert_array_equal(steps_to_reach(losses, 0.3, window), expected)
    assert 0 < np.isnan(expected).sum() < 20


def test_a_window_recovers_after_a_value_that_is_not_finite():
    smooth = trailing_mean(np.array([[1.0, np.inf, 1.0, 1.0, 3.0]]), 2)
    np.testing.assert_array_equal(smooth, [[np.inf, np.inf, 1.0, 2.0]])
    for window in (0, 6):
        with pytest.raises(ValueError, match="1 to the 5 steps"):
            trailing_mean(np.ones((1, 5)), window)


def test_estimates_have_the_standard_error_of_the_mean():
    values = np.array([1.0, 2.0, 4.0])
    estimate = Estimate.of(values)
    assert estimate.mean == pytest.approx(7 / 3)
    assert estimate.error == pytest.approx(math.sqrt(((4 / 3) ** 2 + (1 / 3) ** 2 + (5 / 3) ** 2) / 2 / 3))
    assert Estimate.of(np.array([1.0, np.nan, 2.0, 4.0])) == estimate
    assert Estimate.of(np.array([5.0])).count == 1
    assert math.isnan(Estimate.of(np.array([5.0])).error)
    assert math.isnan(Estimate.of(np.array([np.nan])).mean)


@pytest.mark.parametrize(
    ("mean", "error", "text"),
    [
        (0.012345, 0.00123, "0.0123 ± 0.0012"),
        (142.31, 5.12, "142.3 ± 5.1"),
        (1234.5, 99.9, "1234 ± 100"),
        (0.5, 0.0, "0.5"),
        (3.0, math.nan, "3"),
        (math.nan, math.nan, "nan"),
        (2.5e9, 1e8, "2.50e+09 ± 1e+08"),
    ],
)
def test_estimates_are_printed_to_two_digits_of_their_error(mean, error, text):
    assert str(Estimate(mean, error, 3)) == text


def synthetic() -> list[Curve]:
    """Ten steps, two seeds, a window of two: Adam ends at 2.0; `fast` is there after 4 and 5 steps."""

    def curve(name: str, losses: list[list[float]], accuracy: float = 0.5, reference: bool = False) -> Curve:
        test = {"loss": np.full(2, 0.7), "accuracy": np.full(2, accuracy)}
        return Curve(name, np.array(losses), test, 0.0123, reference)

    return [
        curve("fast", [[9, 9, 2, 2, 1, 1, 1, 1, 1, 1], [9, 9, 9, 2, 2, 1, 1, 1, 1, 1.5]], accuracy=0.9),
        curve("half", [[9, 9, 2, 2, 1, 1, 1, 1, 1, 1], [9] * 10]),
        curve("slow", [[9] * 10, [8] * 10]),
        curve("Adam", [[9, 9, 9, 9, 9, 9, 9, 9, 2, 2], [9, 9, 9, 9, 9, 9, 9, 9, 1.8, 2.2]], reference=True),
        curve("broken", [[9, 9, math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, math.nan], [3] * 10]),
    ]


def test_the_summary_of_known_curves():
    fast, half, slow, adam, broken = summarize(synthetic(), window=2)
    assert adam.final_loss.mean == pytest.approx(2.0)
    assert (fast.steps.mean, fast.steps.error, fast.steps.count) == (4.5, 0.5, 2)
    assert fast.speedup.mean == pytest.approx((10 / 4 + 10 / 5) / 2)
    assert fast.final_loss.mean == pytest.approx((1 + 1.25) / 2)
    assert (half.steps.mean, half.steps.count) == (4.0, 1)
    assert slow.steps.count == 0
    assert math.isnan(slow.speedup.mean)
    assert (adam.steps.mean, adam.speedup.mean) == (10.0, 1.0)
    early = synthetic()
    early[3] = dataclasses.replace(
        early[3], losses=np.array([[9, 9, 9, 9, 9, 9, 9, 2, 2, 2], [9, 9, 9, 9, 9, 1.8, 3, 1.8, 1.8, 1.8]])
    )
    fast, *_, adam, _ = summarize(early, window=1)
    assert adam.steps.mean == (8 + 6) / 2  # where it first was what it ends at, in each seed
    assert fast.speedup.mean == pytest.approx((8 / 3 + 6 / 6) / 2)  # in the second 2 is not enough
    assert (broken.diverged, broken.final_loss.mean, broken.final_loss.count) == (1, 3.0, 1)
    assert [row.diverged for row in (fast, half, slow, adam)] == [0, 0, 0, 0]


def test_what_trains_as_the_reference_does_has_a_speed_up_of_one():
    """However much seeds differ in how low they get, and losses from step to step."""
    random = np.random.default_rng(0)
    losses = np.exp(-np.linspace(0, 3, 200))[None] * random.uniform(0.7, 1.3, (10, 1)) * random.uniform(0.8, 1.2, (10, 200))
    adam, same = (Curve(name, losses.astype(np.float32), {}, 0.0, name == "Adam") for name in ("Adam", "same"))
    worse = Curve("worse", (1.02 * losses).astype(np.float32), {}, 0.0)
    reference, of_same, of_worse = summarize([adam, same, worse], window=20)
    assert (of_same.speedup.mean, of_same.speedup.error, of_same.speedup.count) == (1.0, 0.0, 10)
    assert of_same.steps == reference.steps
    assert of_worse.steps.count == 0 or of_worse.speedup.mean <= 1.0
    lost = dataclasses.replace(adam, losses=np.where(np.arange(10)[:, None] == 3, np.float32(np.nan), adam.losses))
    assert [row.steps.count for row in summarize([lost, same], window=20)] == [9, 9]  # no loss to reach in this seed


def cells(text: str) -> dict[str, dict[str, str]]:
    lines = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines()]
    return {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}


def test_the_table_says_what_was_reached_and_what_was_not():
    table = cells(markdown_table(summarize(synthetic(), window=2)))
    steps = "steps to Adam's final loss"
    assert table["fast"]["test accuracy"] == "0.9"
    assert table["fast"][steps] == "4.50 ± 0.50"
    assert table["fast"]["speed-up"] == "2.25 ± 0.25"
    assert table["half"][steps] == "4, never (1 of 2)"
    assert table["half"]["speed-up"] == "2.5 (1 of 2)"
    assert table["slow"][steps] == "never (2 of 2)"
    assert table["slow"]["speed-up"] == "-"
    assert table["Adam"][steps] == "10 (target)"
    assert table["fast"]["diverged"] == "0"
    assert table["fast"]["ms / step"] == "12"
    assert "test loss" not in table["fast"]


def test_a_diverged_seed_shows_in_the_table():
    table = cells(markdown_table(summarize(synthetic(), window=2)))
    assert table["broken"]["diverged"] == "1 of 2"
    assert table["broken"]["final training loss"] == "nan (others: 3)"
    assert table["broken"]["test accuracy"] == "nan (others: 0.5)"


def test_a_test_loss_that_is_not_finite_is_divergence():
    curve = synthetic()[0]
    bad = dataclasses.replace(curve, test={**curve.test, "loss": np.array([0.1, np.inf])})
    np.testing.assert_array_equal(bad.diverged, [False, True])


def test_where_the_reference_diverged_nothing_is_reached():
    curves = synthetic()
    curves[3] = dataclasses.replace(curves[3], losses=np.full((2, 10), np.nan))
    table = cells(markdown_table(summarize(curves, window=2)))
    assert table["Adam"]["final training loss"] == "nan"
    assert table["fast"]["steps to Adam's final loss"] == "never (2 of 2)"


def test_a_task_without_metrics_shows_its_test_loss():
    curves = [dataclasses.replace(curve, test={"loss": curve.test["loss"]}) for curve in synthetic()]
    assert cells(markdown_table(summarize(curves, window=2)))["fast"]["test loss"] == "0.7"


def test_a_table_with_two_metrics_fits_80_columns_too():
    curves = [
        dataclasses.replace(curve, name=name, test={**curve.test, "bits_per_character": np.array([2.7412, 2.9317])})
        for curve, name in zip(synthetic(), ["meta-trained", "before meta-training", "slow", "tuned Adam", "broken"], strict=True)
    ]
    rows = summarize(curves, window=2)
    assert cells(markdown_table(rows))["slow"]["test bits per character"] == "2.836 ± 0.095"
    output = io.StringIO()
    Console(file=output, width=80).print(rich_table(rows, "title", "caption"))
    assert max(map(len, output.getvalue().splitlines())) <= 80
    for shown in ("meta-training", "character", "accuracy", "2.836", "never", "step", "12"):
        assert shown in output.getvalue()
    assert "…" not in output.getvalue()


@pytest.mark.parametrize("references", [0, 2])
def test_one_competitor_sets_the_target(references):
    curves = [dataclasses.replace(curve, reference=index < references) for index, curve in enumerate(synthetic())]
    with pytest.raises(ValueError, match="exactly one"):
        summarize(curves, window=2)


def test_a_curve_checks_its_shapes():
    with pytest.raises(ValueError, match=r"'a'.*\(3,\)"):
        Curve("a", np.zeros(3), {}, 0.0)
    with pytest.raises(ValueError, match="accuracy of 'a'"):
        Curve("a", np.zeros((3, 2)), {"accuracy": np.zeros(2)}, 0.0)


@pytest.mark.parametrize("first", ["meta-trained", "docs/reproduction/mlp-cpu/theta/DeepSets-0"])
def test_the_terminal_table_fits_80_columns_and_hides_nothing(first):
    names = [first, "before meta-training", "slow", "tuned Adam", "broken"]
    curves = [dataclasses.replace(curve, name=name) for curve, name in zip(synthetic(), names, strict=True)]
    output = io.StringIO()
    Console(file=output, width=80).print(rich_table(summarize(curves, window=2), "title", "caption"))
    text = output.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for shown in (
        "meta-training",
        "4.50",
        "± 0.50",
        "never",
        "(1 of 2)",
        "1 of 2",
        "nan",
        "title",
        "caption",
        "speed-up",
        "diverged",
        "ms /",
    ):
        assert shown in text
