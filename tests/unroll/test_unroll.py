"""Inner training as a scan: the same as a plain loop, and meta-losses that add up."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopt.optimizers.momentum import LearnedOptimizer, LearnedSGDMConfig
from lopt.unroll import Clock, UnrollConfig, advance, first_clock, make_unroll
from lopt.unroll.clock import draw_windows
from tasks.mlp import MLPConfig


@pytest.fixture(scope="module")
def task():
    return MLPConfig(hidden=(4,), batch_size=8).make()


def test_a_window_is_a_plain_training_loop(task):
    optimizer = LearnedSGDMConfig(alpha=0.1, g0=0.5).make(task.spec)
    unroll = make_unroll(UnrollConfig(horizon=4, truncation=4), task, optimizer)
    theta = optimizer.init(jax.random.key(0))
    state = unroll.start(jax.random.key(1), theta).inner
    window = unroll.window(jax.random.key(2), task.datasets, ())
    after, losses, meta_losses = jax.jit(unroll.steps)(theta, state, window, jnp.int32(4))
    np.testing.assert_array_equal(losses, meta_losses)

    params, reference = state.params, optax.sgd(0.1, momentum=0.5)
    reference_state = reference.init(params)
    for t in range(4):
        batch = jax.tree.map(lambda x: x[t], window.batches)  # noqa: B023
        loss, grads = jax.value_and_grad(task.loss)(params, window.keys[t], batch)
        np.testing.assert_allclose(losses[t], loss, rtol=1e-5)
        updates, reference_state = reference.update(grads, reference_state, params)
        params = optax.apply_updates(params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), after.params, params)


def test_batches_come_from_the_training_split_and_differ(task):
    unroll = make_unroll(UnrollConfig(horizon=4, truncation=4), task, LearnedSGDMConfig().make(task.spec))
    batches = unroll.window(jax.random.key(0), task.datasets, ()).batches
    train = {image.tobytes() for image in np.asarray(task.datasets.train.arrays["image"])}
    images = np.asarray(batches["image"])
    assert images.shape[:2] == (4, 8)
    assert all(image.tobytes() in train for image in images.reshape(32, *images.shape[2:]))
    assert len({batch.tobytes() for batch in images}) == 4


def losses_of(config, losses, step, horizon, task=None, best=np.inf):
    task = task or MLPConfig(hidden=(4,)).make()
    unroll = make_unroll(config, task, LearnedOptimizer(lambda k: {}, lambda t: optax.identity(), lambda t: {}))
    losses = jnp.asarray(losses, jnp.float32)
    clock = Clock(jnp.int32(step), jnp.int32(horizon), jnp.int32(0))
    return unroll.losses(losses, losses, clock, jnp.float32(best))


@pytest.mark.parametrize(
    ("kind", "expected"), [("mean", 1.125), ("final", 1.25), ("last", np.mean([0.5, 0.5, 1.25])), ("min", 0.5)]
)
def test_shares_of_the_windows_average_to_the_meta_loss(task, kind, expected):
    losses, best, shares = [2.0, 1.5, 1.0, 0.5, 0.5, 1.25], np.inf, []
    config = UnrollConfig(horizon=6, truncation=2, meta_loss=kind, last=3 if kind == "last" else None)
    for i in (0, 2, 4):
        out, best = losses_of(config, losses[i : i + 2], i, 6, task, best)
        shares.append(float(out.meta_loss))
    np.testing.assert_allclose(np.mean(shares), expected, rtol=1e-6)
    assert best == 0.5


@pytest.mark.parametrize(("part", "expected"), [(0.5, np.mean([0.5, 0.5, 1.25])), (1.0, 1.125), (0.01, 1.25)])
def test_the_last_part_is_that_of_each_training(task, part, expected):
    config = UnrollConfig(horizon=6, truncation=2, meta_loss="last", last_part=part, horizons="log_uniform")
    losses = [2.0, 1.5, 1.0, 0.5, 0.5, 1.25]
    shares = [float(losses_of(config, losses[i : i + 2], i, 6, task)[0].meta_loss) for i in (0, 2, 4)]
    np.testing.assert_allclose(np.mean(shares), expected, rtol=1e-6)
    shares = [float(losses_of(config, losses[i : i + 2], i, 4, task)[0].meta_loss) for i in (0, 2)]
    shorter = {0.5: 0.75, 1.0: 1.25, 0.01: 0.5}[part]
    np.testing.assert_allclose(np.mean(shares), shorter, rtol=1e-6)


def test_more_last_steps_than_there_are_is_the_mean(task):
    config = UnrollConfig(horizon=4, truncation=2, meta_loss="last", last=100)
    shares = [float(losses_of(config, losses, i, 4, task)[0].meta_loss) for i, losses in ((0, [2.0, 1.0]), (2, [0.5, 0.5]))]
    np.testing.assert_allclose(np.mean(shares), 1.0, rtol=1e-6)


def test_the_meta_loss_is_measured_on_the_split_asked_for(task):
    config = UnrollConfig(horizon=4, truncation=4, meta_data="outer_valid")
    optimizer = LearnedSGDMConfig().make(task.spec)
    unroll, theta = make_unroll(config, task, optimizer), optimizer.init(jax.random.key(0))
    window = unroll.window(jax.random.key(2), task.datasets, ())
    held_out = {image.tobytes() for image in np.asarray(task.datasets.outer_valid.arrays["image"])}
    images = np.asarray(window.meta_batches["image"])
    assert all(image.tobytes() in held_out for image in images.reshape(32, *images.shape[2:]))
    start = unroll.start(jax.random.key(1), theta).inner
    _, losses, meta_losses = jax.jit(unroll.steps)(theta, start, window, jnp.int32(4))
    expected = task.loss(start.params, window.keys[0], jax.tree.map(lambda x: x[0], window.meta_batches))
    np.testing.assert_allclose(meta_losses[0], expected, rtol=1e-5)
    assert np.all(losses != meta_losses)


def test_caps_are_counted_and_nothing_is_silent(task):
    cap = 1.5 * np.log(10)
    out, _ = losses_of(UnrollConfig(horizon=4, truncation=4, meta_loss="mean"), [1.0, 100.0, np.nan, np.inf], 0, 4, task)
    assert (int(out.capped), int(out.nonfinite)) == (1, 2)
    np.testing.assert_allclose(out.mean, (1 + 3 * cap) / 4, rtol=1e-6)
    config = UnrollConfig(horizon=4, truncation=4, meta_loss="mean", loss_cap=np.inf)
    out, _ = losses_of(config, [1.0, 100.0, 2.0, 3.0], 0, 4, task)
    np.testing.assert_allclose(out.meta_loss, 26.5, rtol=1e-6)


def clock_at(step, horizon, age=0):
    return Clock(jnp.int32(step), jnp.int32(horizon), jnp.int32(age))


def test_clocks_run_restart_and_are_staggered():
    config, key = UnrollConfig(horizon=8, truncation=2), jax.random.key(0)

    def first(particles):
        return [int(first_clock(config, key, jnp.int32(i), particles).horizon) for i in range(particles)]

    assert first(4) == [8, 6, 4, 2]
    assert first(16) == [8] * 4 + [6] * 4 + [4] * 4 + [2] * 4
    for clock, diverged, expected in (
        (clock_at(2, 4), False, (0, 8, 1, True)),
        (clock_at(2, 8, 5), False, (4, 8, 6, False)),
        (clock_at(2, 8), True, (0, 8, 1, True)),
    ):
        after, restart = advance(config, key, clock, jnp.bool(diverged))
        assert (int(after.step), int(after.horizon), int(after.age), bool(restart)) == expected


def test_log_uniform_horizons_are_whole_windows_of_every_length():
    config = UnrollConfig(horizon=32, truncation=2, horizons="log_uniform", min_horizon=4)
    drawn = np.asarray(jax.vmap(lambda key: draw_windows(config, key, jnp.int32(0)))(jax.random.split(jax.random.key(0), 4000)))
    counts = np.bincount(drawn, minlength=17)
    assert set(np.flatnonzero(counts)) == set(range(2, 17))
    # log-uniform on [2, 17): the chance of w is log((w + 1) / w) / log(17 / 2)
    expected = np.log((np.arange(2, 17) + 1) / np.arange(2, 17)) / np.log(17 / 2)
    assert np.all(abs(counts[2:] / 4000 - expected) < 4 * np.sqrt(expected / 4000))


def test_a_curriculum_grows_to_the_whole_horizon():
    config = UnrollConfig(horizon=64, truncation=2, horizons="curriculum", curriculum_steps=10)
    drawn = [int(draw_windows(config, jax.random.key(0), jnp.int32(age))) for age in (0, 2, 4, 6, 8, 10, 1000)]
    assert drawn == [1, 2, 4, 8, 16, 32, 32]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizon": 120}, "horizon must be a positive multiple of truncation=50, got 120"),
        ({"meta_loss": "best"}, "meta_loss must be one of 'final', 'mean', 'last', 'min', got 'best'"),
        ({"meta_data": "valid"}, "meta_data must be one of 'train', 'inner_valid', 'outer_valid', got 'valid'"),
        ({"horizons": "curriculum", "min_horizon": 75}, "min_horizon must be a positive multiple of truncation=50, got 75"),
        ({"horizons": "log_uniform", "min_horizon": 2050}, "min_horizon=2050 is longer than horizon=2000"),
        ({"last": 0}, "last must be at least 1, got 0"),
        ({"meta_loss": "last", "last_part": 0.0}, r"last_part must lie in \(0, 1\], got 0.0"),
        ({"meta_loss": "last", "last": 5, "last_part": 0.5}, "last=5 and last_part=0.5 say two things"),
        ({"last_part": 0.5}, "last_part=0.5 does nothing with meta_loss='final'"),
        ({"last": 5}, "last=5 does nothing with meta_loss='final': leave it out"),
        ({"min_horizon": 50}, "min_horizon=50 does nothing with horizons='constant'"),
        ({"horizons": "log_uniform", "curriculum_steps": 5}, "curriculum_steps=5 does nothing with horizons='log_uniform'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        UnrollConfig(**settings)
