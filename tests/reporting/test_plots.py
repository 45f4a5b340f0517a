import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.collections import PolyCollection

from lopt.evaluation.summary import Curve
from lopt.reporting import plots, plots_meta
from lopt.reporting.plots_held_out import held_out_figure


def curve(name: str, losses: np.ndarray, reference: bool = False) -> Curve:
    return Curve(name, losses, {"loss": np.zeros(len(losses))}, 1e-3, reference)


def decay(rate: float, seeds: int = 4, T: int = 100) -> np.ndarray:
    noise = np.random.default_rng(0).uniform(0.9, 1.1, (seeds, T))
    return 2.0 * np.exp(-rate * np.arange(T))[None] * noise


@pytest.fixture
def curves() -> list[Curve]:
    return [curve("learned", decay(0.08)), curve("start", decay(0.01)), curve("Adam", decay(0.04), reference=True)]


def lines(figure) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Label -> x, y of the drawn lines with a label in the legend."""
    return {
        line.get_label().split(":")[0]: (np.asarray(line.get_xdata()), np.asarray(line.get_ydata()))
        for line in figure.axes[0].get_lines()
        if not line.get_label().startswith("_")
    }


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def crosses(figure) -> list[tuple[float, float]]:
    return [(line.get_xdata()[0], line.get_ydata()[0]) for line in figure.axes[0].get_lines() if line.get_marker() == "x"]


def test_curves_are_means_over_seeds_of_a_short_trailing_window(curves):
    figure = plots.curves_figure(curves, task="toy", window=10)
    x, y = lines(figure)["learned"]
    losses = curves[0].losses
    assert x[0] == 2
    assert x[-1] == 100
    np.testing.assert_allclose(y[0], losses[:, :2].mean())
    np.testing.assert_allclose(y[-1], losses[:, -2:].mean())


def test_the_band_is_one_standard_error(curves):
    figure = plots.curves_figure(curves, task="toy", window=10)
    band = figure.axes[0].findobj(PolyCollection)[0].get_paths()[0].vertices
    last = band[band[:, 0] == 100][:, 1]
    pairs = curves[0].losses[:, -2:].mean(axis=1)
    error = pairs.std(ddof=1) / np.sqrt(len(pairs))
    np.testing.assert_allclose([last.min(), last.max()], [pairs.mean() - error, pairs.mean() + error], rtol=1e-6)


def test_title_and_legend_say_what_there_is(curves):
    figure = plots.curves_figure(curves, task="toy", window=10)
    assert "toy" in figure.axes[0].get_title(loc="left")
    assert "T = 100" in figure.axes[0].get_title(loc="left")
    assert "4 seeds" in figure.axes[0].get_title(loc="left")
    labels = legend(figure)
    assert len(labels) == 4
    assert labels[0].startswith("learned: 0.00")
    assert labels[0].endswith("x")  # its speed-up
    assert "x" not in labels[1].removeprefix("start")  # never gets there
    assert labels[-1].startswith("Adam's final loss")


def test_the_axis_is_logarithmic_only_where_losses_span_much(curves):
    assert plots.curves_figure(curves, task="toy", window=10).axes[0].get_yscale() == "log"
    flat = [dataclasses.replace(c, losses=1.0 + 0.1 * c.losses) for c in curves]
    assert plots.curves_figure(flat, task="toy", window=10).axes[0].get_yscale() == "linear"
    negative = [dataclasses.replace(c, losses=c.losses - 1.0) for c in curves]
    assert plots.curves_figure(negative, task="toy", window=10).axes[0].get_yscale() == "linear"


def test_a_diverged_seed_leaves_the_mean_and_is_marked_and_counted(curves):
    losses = curves[0].losses.copy()
    losses[1, 50:] = np.nan
    losses[2, 70:] = np.inf
    figure = plots.curves_figure([dataclasses.replace(curves[0], losses=losses), *curves[1:]], task="toy", window=10)
    assert any(label.startswith("learned: nan (2 of 4 seeds diverged)") for label in legend(figure))
    assert sorted(x for x, _ in crosses(figure)) == [50, 70]
    _, y = lines(figure)["learned"]
    np.testing.assert_allclose(y[-1], losses[[0, 3], -2:].mean())


def test_a_dot_that_is_of_some_seeds_alone_is_open(curves):
    some = dataclasses.replace(curves[0], name="some", losses=np.where(np.arange(4)[:, None] < 2, curves[0].losses, 1.0))
    figure = plots.curves_figure([curves[0], some, curves[2]], task="toy", window=10)
    dots = [line for line in figure.axes[0].get_lines() if line.get_marker() == "o"]
    assert [dot.get_markerfacecolor() for dot in dots] == [plots.COLORS[0], plots.LIGHT.paper]
    assert "(2 of 4 seeds)" in legend(figure)[1]


def test_a_seed_that_diverges_before_the_mean_begins_is_marked_too(curves):
    losses = decay(0.01, T=500)
    losses[0, 4:], losses[1, :] = np.nan, np.nan
    others = [curve(name, decay(0.02, T=500), name == "Adam") for name in ("b", "Adam")]
    figure = plots.curves_figure([curve("early", losses), *others], task="toy", window=10)
    top = figure.axes[0].get_ylim()[1]
    assert sorted(crosses(figure)) == [(0, top), (4, pytest.approx(losses[0, 3]))]


def many_curves(count: int) -> list[Curve]:
    names = [f"c{index}" for index in range(count)]
    many = [curve(name, decay(0.01 + 0.002 * index), name == names[-1]) for index, name in enumerate(names)]
    return [dataclasses.replace(c, at=np.array([1, 100]), held_out={"loss": c.losses[:, [0, -1]]}) for c in many]


def test_no_two_of_twelve_competitors_look_alike_and_each_is_the_same_in_all_pictures():
    many, looks = many_curves(12), []
    for figure in (plots.curves_figure(many, task="toy", window=10), held_out_figure(many, task="toy")):
        drawn = {line.get_label().split(":")[0]: line for line in figure.axes[0].get_lines()}
        looks.append([(drawn[c.name].get_color(), str(drawn[c.name]._unscaled_dash_pattern)) for c in many])
        assert len({color for color, _ in looks[-1]}) == len(many)
        assert [text.get_text().split(":")[0] for text in figure.legends[0].get_texts()][: len(many)] == [c.name for c in many]
    assert looks[0] == looks[1]


@pytest.mark.parametrize("look", [plots.LIGHT, plots.Look(narrow=True)], ids=["wide", "narrow"])
def test_more_than_twelve_competitors_have_a_panel_each(look):
    many = many_curves(14)
    for figure in (plots.curves_figure(many, task="toy", window=10, look=look), held_out_figure(many, task="toy", look=look)):
        assert [ax.get_title(loc="left").split("\n")[0] for ax in figure.axes] == [c.name for c in many]
        assert not figure.legends
        for index, ax in enumerate(figure.axes):
            colours = [line.get_color() for line in ax.get_lines() if line.get_color() in plots.COLORS]
            assert set(colours) == {plots.line_look(index)["color"]}
        assert len({ax.get_ylim() for ax in figure.axes}) == 1


@pytest.mark.parametrize("look", [plots.LIGHT, plots.Look(narrow=True)], ids=["wide", "narrow"])
@pytest.mark.parametrize("count", [3, 12])
def test_the_legend_lies_below_the_panel_inside_the_figure(look, count):
    figure = plots.curves_figure(many_curves(count), task="toy", window=10, look=look)
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    panel = figure.axes[0].get_tightbbox()
    assert box.y1 <= panel.y0 + 1
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert panel.height > 250  # pixels at 100 a inch


def test_a_competitor_that_is_nan_from_the_start_is_in_the_legend(curves):
    nothing = dataclasses.replace(curves[0], losses=np.full_like(curves[0].losses, np.nan))
    figure = plots.curves_figure([nothing, *curves[1:]], task="toy", window=10)
    assert any(label.startswith("learned: nan (4 of 4 seeds diverged)") for label in legend(figure))
    assert plots.png(figure).startswith(b"\x89PNG")


def test_a_race_in_which_all_diverged_is_drawn(curves):
    nothing = [dataclasses.replace(c, losses=np.full_like(c.losses, np.nan)) for c in curves]
    figure = plots.curves_figure(nothing, task="toy", window=10)
    assert plots.png(figure).startswith(b"\x89PNG")
    assert len(legend(figure)) == 3


def test_an_exploding_loss_does_not_flatten_the_others(curves):
    losses = curves[1].losses * np.exp(np.arange(100))
    losses[:, 90:] = np.inf
    exploding = dataclasses.replace(curves[1], losses=losses)
    figure = plots.curves_figure([curves[0], exploding, curves[2]], task="toy", window=10)
    bottom, top = figure.axes[0].get_ylim()
    assert top < 10.0
    assert crosses(figure) == [(90, top)] * 4
    assert plots.png(figure).startswith(b"\x89PNG")
    assert bottom < curves[0].losses.min() * 1.5


def test_one_seed_and_one_step_can_be_drawn():
    figure = plots.curves_figure([curve("a", np.ones((1, 1))), curve("Adam", np.ones((1, 1)), True)], task="toy", window=1)
    assert plots.png(figure).startswith(b"\x89PNG")
    assert "1 seed" in figure.axes[0].get_title(loc="left")


def records(count: int = 40) -> list[dict]:
    return [
        {
            "outer_step": step,
            "meta_loss": 2.0 - 0.01 * step,
            "alpha": 0.1 * step,
            "g0": 0.9,
            "gradient_norm": 1.0 / step,
            "diverged": 2 if step == 7 else 0,
            "capped": 3,
        }
        for step in range(1, count + 1)
    ]


def test_the_meta_training_is_drawn_from_its_records():
    figure = plots_meta.meta_training_figure(records(), title="toy")
    loss, norm, alpha, g0 = figure.axes
    np.testing.assert_allclose(loss.get_lines()[0].get_ydata(), [record["meta_loss"] for record in records()])
    assert [ax.get_ylabel() for ax in (alpha, g0)] == ["alpha", "g0"]  # and no beta, which no record has
    np.testing.assert_allclose(alpha.get_lines()[0].get_ydata(), 0.1 * np.arange(1, 41))
    assert norm.get_yscale() == "log"
    assert "2 particles diverged" in norm.texts[0].get_text()
    assert "120 inner losses capped" in norm.texts[0].get_text()
    assert [list(line.get_xdata()) for line in norm.get_lines() if line.get_marker() == "x"] == [[7]]
    assert plots.png(figure).startswith(b"\x89PNG")


def test_without_scalars_there_is_no_panel_for_them():
    bare = [{"outer_step": step, "meta_loss": 1.0 / step} for step in range(1, 5)]
    figure = plots_meta.meta_training_figure(bare, title="toy")
    assert len(figure.axes) == 2
    assert plots.png(figure).startswith(b"\x89PNG")


def test_records_that_are_not_finite_or_not_of_outer_steps_do_no_harm():
    mixed = [{"outer_step": 0, "note": "no loss"}, *records(5)]
    mixed[3] |= {"meta_loss": math.nan, "gradient_norm": math.inf, "final_loss": 0.5}
    figure = plots_meta.meta_training_figure(mixed, title="toy")
    assert plots.png(figure).startswith(b"\x89PNG")
    assert len(figure.axes[0].get_lines()[0].get_xdata()) == 5
    with pytest.raises(ValueError, match="no record"):
        plots_meta.meta_training_figure(mixed[:1], title="toy")


def test_one_record_is_enough():
    assert plots.png(plots_meta.meta_training_figure(records(1), title="toy")).startswith(b"\x89PNG")


def test_running_mean_is_that_of_the_finite_neighbours():
    values = np.random.default_rng(0).normal(size=12)
    values[[3, 4, 5, 9]] = np.nan
    for window in (1, 3, 5):
        near = [values[max(0, i - window // 2) : i + window // 2 + 1] for i in range(12)]
        expected = [part[np.isfinite(part)].mean() if np.isfinite(part).any() else np.nan for part in near]
        np.testing.assert_allclose(plots_meta.running_mean(values, window), expected)


def test_matplotlib_is_loaded_late_and_left_as_it_was():
    code = """
import sys
import lopt.reporting.report, scripts.evaluate
assert "matplotlib" not in sys.modules, "imported with lopt"
import matplotlib, numpy as np
matplotlib.rcParams["lines.linewidth"] = 7.0
def settings():  # to look at the backend would choose one
    return {name: matplotlib.rcParams[name] for name in matplotlib.rcParams if name != "backend"}
before = settings()
from lopt.reporting import plots
from lopt.evaluation.summary import Curve
figure = plots.curves_figure([Curve("a", np.ones((2, 9)), {}, 0.0, True)], task="toy", window=3)
plots.png(figure)
assert figure.axes[0].get_lines()[0].get_linewidth() != 7.0
assert settings() == before
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
