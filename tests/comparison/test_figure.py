"""The picture: what is drawn is what was found, nothing lies on something else, and colour-blind readers see it too."""

import dataclasses
import functools
import itertools
import math

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb

from lopt.comparison.config import Rival
from lopt.comparison.figure import comparison_figure, look_of
from lopt.comparison.results import mean_curve
from lopt.reporting import plots
from tests.comparison.test_results import ALL, diverging, given_up
from tests.comparison.toy import DRAWN, found

RIVALS = tuple(Rival(f"R{index}") for index in range(12))


def unfinished(seed, entry):
    return dataclasses.replace(
        entry, state=dataclasses.replace(entry.state, done=700, records=entry.state.records[:700]), step=400
    )


def without_scores(seed, entry):
    kept = [{name: value for name, value in record.items() if name != "held_out/score"} for record in entry.state.records]
    return dataclasses.replace(entry, state=dataclasses.replace(entry.state, records=tuple(kept)), which="newest")


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def lines_of(ax, color):
    return [line for line in ax.get_lines() if line.get_color() == color]


def test_the_left_panel_is_the_mean_over_meta_seeds_with_its_error():
    comparison = found(ALL)
    ax = comparison_figure(comparison).axes[0]
    color = look_of(comparison, "UNF")["color"]
    (line,) = lines_of(ax, color)
    steps, mean, error = mean_curve([entry.curve for entry in comparison.entries["UNF"]], 4)
    np.testing.assert_allclose(line.get_xdata(), steps)
    np.testing.assert_allclose(line.get_ydata(), mean)
    band = next(c for c in ax.findobj(PolyCollection) if np.allclose(c.get_facecolor()[0][:3], to_rgb(color)))
    last = band.get_paths()[0].vertices
    last = last[last[:, 0] == 200][:, 1]
    np.testing.assert_allclose([last.min(), last.max()], [mean[-1] - error[-1], mean[-1] + error[-1]])
    dashed = [line for line in ax.get_lines() if line.get_color() in plots.GREYS and line.get_label().startswith("tuned")]
    assert [line.get_label().split(":")[0] for line in dashed] == ["tuned Adam", "tuned SGDM"]
    assert all(line.get_linestyle() == "--" for line in dashed)


def test_the_right_panel_has_every_meta_seed_and_the_theta_that_was_raced():
    comparison = found(ALL, UNF=lambda seed, entry: unfinished(seed, entry) if seed == 1 else entry)
    ax = comparison_figure(comparison).axes[1]
    lines = lines_of(ax, look_of(comparison, "UNF")["color"])
    thin = [line for line in lines if line.get_linewidth() < 1]
    (mean,) = [line for line in lines if line.get_linewidth() == 2.0 and line.get_linestyle() == "-"]
    assert [len(line.get_xdata()) for line in thin] == [10, 7, 10]
    assert list(mean.get_xdata()) == list(range(100, 701, 100))  # as far as all have come
    np.testing.assert_allclose(mean.get_ydata(), np.mean([line.get_ydata()[:7] for line in thin], axis=0))
    assert [line.get_xdata()[0] for line in lines if line.get_marker() == "o"] == [900, 400, 900]
    assert "held-out loss" in ax.get_title(loc="left")
    assert "(1 unfinished)" in legend(comparison_figure(comparison))[2]


def test_without_held_out_evaluations_it_is_the_meta_loss():
    comparison = found({"SGDM": 1, "UNF": 1}, SGDM=without_scores, UNF=without_scores)
    ax = comparison_figure(comparison).axes[1]
    assert ax.get_title(loc="left") == "meta-loss, running mean"
    assert len(lines_of(ax, look_of(comparison, "UNF")["color"])[0].get_xdata()) == 1000


def test_budget_and_what_is_missing_are_written_in_the_picture():
    figure = comparison_figure(found({"SGDM": 2, "UNF": 1}))
    text = " ".join(" ".join(part.get_text() for part in figure.texts).split())
    for part in (
        "a toy",
        "budget 'cpu': 1,000 outer steps",
        "so far 3 of 12 runs",
        "Meta-seeds raced, of 3: SGDM 2, DeepSets 0, UNF 1, NFN 0.",
        "48 s of outer steps",
        "on cpu x 2",
        "Differs from the paper: Difference number 0",
        "a single meta-seed for UNF",
    ):
        assert part in text
    assert "(2 of 3 seeds)" in legend(figure)[0]
    assert "so far" not in " ".join(part.get_text() for part in comparison_figure(found(ALL)).texts)


def test_what_diverged_is_marked_and_counted():
    comparison = found(ALL, UNF=diverging, DeepSets=given_up)
    figure = comparison_figure(comparison)
    crosses = [line for line in figure.axes[1].get_lines() if line.get_marker() == "x"]
    assert [(line.get_color(), line.get_xdata()[0]) for line in crosses] == [(look_of(comparison, "DeepSets")["color"], 600)] * 2
    labels = " ".join(legend(figure)).replace("\n", " ")
    assert "(2 of 3 meta-trainings diverged)" in labels
    assert "6 of 9 seeds diverged" in labels
    assert "unfinished" not in labels


@pytest.mark.parametrize(
    ("counts", "changes"),
    [
        (ALL, {}),
        ({"UNF": 1}, {}),
        (ALL, {"SGDM": functools.partial(diverging, upto=3), "UNF": diverging, "DeepSets": given_up, "NFN": unfinished}),
    ],
    ids=["whole", "one run", "all that can go wrong"],
)
def test_no_text_lies_on_another_or_leaves_the_picture(counts, changes):
    figure = comparison_figure(found(counts, **changes))
    with plots.style():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        renderer = canvas.get_renderer()
        texts = [*figure.texts, *figure.legends[0].get_texts(), figure.legends[0].get_title()]
        for ax in figure.axes:
            texts += [ax.xaxis.label, ax._left_title]
            for axis, limits in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
                texts += [tick.label1 for tick in axis.get_major_ticks() if limits[0] <= tick.get_loc() <= limits[1]]
        boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts if text.get_text() and text.get_visible()]
        panels = [ax.get_window_extent(renderer) for ax in figure.axes]
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        assert not a.overlaps(b), (one, other)
    for name, box in boxes:
        assert box.x0 >= 0, name
        assert box.x1 <= figure.bbox.x1, name
        assert box.y0 >= 0, name
        assert box.y1 <= figure.bbox.y1, name
    for name, box in boxes[: len(figure.texts)]:
        assert not any(box.overlaps(panel) for panel in panels), name
    assert plots.png(figure).startswith(b"\x89PNG")


# Vienot, Brettel, Mollon, "Digital video colourmaps for checking the legibility of displays by dichromats" (1999): on linear RGB.
DICHROMATS = {
    "normal": np.eye(3),
    "protan": np.array([[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]]),
    "deutan": np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]]),
}


def lab(color, matrix):
    rgb = np.array(to_rgb(color))
    linear = matrix @ np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(linear, 0, 1) / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("eye", DICHROMATS)
def test_learned_optimizers_are_told_apart_by_colour_blind_eyes(eye):
    """Colour differences in CIELAB: 2.3 is just noticeable, red and green of equal lightness are 5 apart to a dichromat."""
    distances = {
        (one, other): math.dist(lab(one, DICHROMATS[eye]), lab(other, DICHROMATS[eye]))
        for one, other in itertools.combinations(plots.LEARNED[:4], 2)
    }
    assert min(distances.values()) > 15, distances


def test_every_one_of_twelve_has_its_own_look():
    drawn = dataclasses.replace(
        found({}), agenda=dataclasses.replace(found({}).agenda, config=dataclasses.replace(DRAWN, rivals=RIVALS, published=()))
    )
    learned = [look_of(drawn, rival.label) for rival in RIVALS]
    by_hand = [plots.by_hand_look(place, 6) for place in range(6)]
    looks = [(look["color"], str(look["linestyle"])) for look in (*learned, *by_hand)]
    assert len({color for color, _ in looks[:12]}) == 12
    assert len({*looks[:6], *looks[12:]}) == 12  # six of each kind
