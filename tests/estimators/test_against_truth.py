"""Every estimator against the exact gradient of what it claims to estimate, on a problem where that is known."""

import jax
import numpy as np
import pytest

from lopt.benchmarks.quadratic import RATE, quadratic_task
from lopt.estimators.full_backprop import FullBackpropConfig
from lopt.estimators.full_es import FullESConfig
from lopt.estimators.gpes import GPESConfig
from lopt.estimators.nres import NRESConfig
from lopt.estimators.pes import PESConfig
from lopt.estimators.truncated_backprop import TruncatedBackpropConfig
from lopt.estimators.truncated_es import TruncatedESConfig
from lopt.unroll import UnrollConfig
from tests.estimators.quadratic import sample_gradients, smoothed_gradient, truncated_gradient

WINDOWS, TRUNCATION, SIGMA, PARTICLES = 4, 2, 0.1, 2000
UNROLL = {"horizon": WINDOWS * TRUNCATION, "truncation": TRUNCATION, "loss_cap": float("inf"), "stagger": False}


def unroll(meta_loss="mean", **changes):
    return UnrollConfig(**{**UNROLL, "meta_loss": meta_loss, "last": 3 if meta_loss == "last" else None, **changes})


def smoothed(*segments):
    return lambda kind: smoothed_gradient(kind, WINDOWS, TRUNCATION, SIGMA, segments)


def evolution(config, **changes):
    return config(particles=PARTICLES, sigma=SIGMA, batched=True, **changes)


def backprop(config):
    return config(particles=PARTICLES, batched=True)


ESTIMATORS = {
    "pes": (evolution(PESConfig), smoothed(0, 1, 2, 3)),
    "gpes": (evolution(GPESConfig, reuse=2 * TRUNCATION), smoothed(0, 0, 1, 1)),
    "nres": (evolution(NRESConfig), smoothed(0, 0, 0, 0)),
    "full_es": (evolution(FullESConfig), smoothed(0, 0, 0, 0)),
    "truncated_es": (
        evolution(TruncatedESConfig),
        lambda kind: truncated_gradient(kind, WINDOWS, TRUNCATION, SIGMA),
    ),
    "truncated_backprop": (
        backprop(TruncatedBackpropConfig),
        lambda kind: truncated_gradient(kind, WINDOWS, TRUNCATION, 0.0),
    ),
    "full_backprop": (
        backprop(FullBackpropConfig),
        lambda kind: smoothed_gradient(kind, WINDOWS, TRUNCATION, 0.0, (0, 0, 0, 0)),
    ),
}


def check(samples, exact, precision=0.08):
    error = samples.std(ddof=1) / np.sqrt(len(samples))
    assert error < precision * abs(exact), "too noisy to tell anything"
    assert abs(samples.mean() - exact) < 3 * error, f"{samples.mean():.5f} +- {error:.5f}, exactly {exact:.5f}"


@pytest.mark.parametrize(
    ("name", "meta_loss"),
    [*((name, kind) for name in ESTIMATORS for kind in ("mean", "final")), ("pes", "last"), ("nres", "last")],
)
def test_mean_is_the_exact_gradient_of_what_is_estimated(name, meta_loss):
    config, exact = ESTIMATORS[name]
    check(sample_gradients(config, unroll(meta_loss)), exact(meta_loss))


@pytest.mark.parametrize("name", ["truncated_es", "truncated_backprop"])
def test_truncation_has_the_bias_it_is_known_for(name):
    """It misses what theta did to the weights before the window: far more than chance can explain, and always too short."""
    samples = sample_gradients(ESTIMATORS[name][0], unroll("final"))
    whole = smoothed_gradient("final", WINDOWS, TRUNCATION, SIGMA, (0, 0, 0, 0))
    error = samples.std(ddof=1) / np.sqrt(len(samples))
    assert abs(samples.mean() - whole) > 10 * error
    assert abs(samples.mean()) < 0.7 * abs(whole)


@pytest.mark.slow
def test_sigmas_of_parts_leave_the_mean_as_it_is():
    config = evolution(NRESConfig, sigmas=(("idle", 0.5), ("rate", SIGMA)))
    check(sample_gradients(config, unroll(), trainings=60), smoothed(0, 0, 0, 0)("mean"), precision=0.2)


def test_what_has_no_sigma_is_not_perturbed_and_has_no_gradient():
    config = evolution(NRESConfig, sigmas=(("idle", 0.0),))
    assert np.all(sample_gradients(config, unroll(), trainings=2, part="idle") == 0)
    check(sample_gradients(config, unroll()), smoothed(0, 0, 0, 0)("mean"))


def test_what_does_nothing_has_no_gradient():
    samples = sample_gradients(evolution(PESConfig), unroll(), part="idle")
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    assert np.all(abs(samples.mean(axis=0)) < 3 * error)
    assert np.all(sample_gradients(backprop(FullBackpropConfig), unroll(), trainings=2, part="idle") == np.zeros((2, 2)))


def test_meta_data_of_another_split():
    """Its mean is shifted by 0.2: where the weight was expected at 0, so that the gradient of the loss has an exact shift too."""
    samples = sample_gradients(backprop(FullBackpropConfig), unroll("final", meta_data="inner_valid"))
    # d/dr E (w - b - 0.2)^2 / 2 = d/dr (m - 0.4 E w) / 2 with E w = (1 - r)^(T - 1) before the last step.
    steps = WINDOWS * TRUNCATION - 1
    shift = 0.2 * steps * (1 - RATE) ** (steps - 1)
    check(samples, smoothed_gradient("final", WINDOWS, TRUNCATION, 0.0, (0, 0, 0, 0)) + shift)


def variance(config, windows):
    """Of a single particle's estimate for a whole training, where the final loss has forgotten all but the last few windows."""
    unrolled = unroll("final", horizon=windows * TRUNCATION)
    made = config(particles=200, sigma=0.02, batched=True)
    samples = sample_gradients(made, unrolled, trainings=50, task=quadratic_task(curvature=4.0))
    return 200 * samples.var(ddof=1)


def test_variance_grows_with_the_windows_for_pes_and_not_for_nres():
    """PES multiplies the last windows' losses with the noise of all windows; NRES has but one noise ."""
    pes, nres = ([variance(config, windows) for windows in (8, 64)] for config in (PESConfig, NRESConfig))
    assert 4 < pes[1] / pes[0] < 16, "in proportion to the windows"
    assert 0.5 < nres[1] / nres[0] < 2


def test_horizons_of_all_lengths_weigh_alike():
    """With log-uniform horizons every window of every training still carries its share: the mean stays finite and of the right sign."""
    samples = sample_gradients(evolution(NRESConfig), unroll("final", horizons="log_uniform"), trainings=20)
    assert np.all(np.isfinite(samples))
    assert np.sign(samples.mean()) == np.sign(smoothed(0, 0, 0, 0)("final"))


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="reuse must be a positive multiple of truncation=2, or None, got 3"):
        GPESConfig(reuse=3).check(unroll())
    with pytest.raises(ValueError, match="reuse must be a positive multiple of truncation=2, or None, got 3"):
        sample_gradients(GPESConfig(particles=4, reuse=3), unroll(), trainings=1)
    with pytest.raises(ValueError, match="sigma of 'rate' must be positive, or 0 for what is not to be trained"):
        PESConfig(sigmas=(("rate", -0.1),))
    with pytest.raises(ValueError, match="constant horizon, not horizons='curriculum'"):
        FullBackpropConfig(4).check(unroll(horizons="curriculum"))
    for whole in (FullESConfig(), FullBackpropConfig()):
        with pytest.raises(ValueError, match="stagger does nothing where an outer step sees whole inner trainings"):
            whole.check(unroll(stagger=True))
    with pytest.raises(ValueError, match=r"sigmas are given for \['speed'\], but theta has the parts \['idle', 'rate'\]"):
        sample_gradients(PESConfig(2, sigmas=(("speed", 0.1),)), unroll(), trainings=1)


def test_the_same_key_gives_the_same_gradient():
    a, b = (sample_gradients(FullESConfig(4, sigma=SIGMA), unroll(), trainings=2) for _ in range(2))
    assert jax.tree.all(jax.tree.map(np.array_equal, a, b))
