"""Nominal steps are optax's own: with f = 0 a rule is the optimizer that its nominal comes from."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from lopt.evaluation.baselines import Hyper, find_baseline
from lopt.features.presets import AdafactorFeatures, Celo2Features
from lopt.networks.update import DeepSetsConfig
from lopt.optimizers.config import LearnedOptimizerConfig
from lopt.optimizers.direction import DirectionRule
from lopt.optimizers.gated import GatedRule, NominalRule
from lopt.optimizers.muon import newton_schulz, scale_by_muon
from lopt.optimizers.nominals import AdamNominal, MomentumNominal, MuonNominal, NAdamNominal, NoNominal
from lopt.optimizers.scalars import decay, positive, read_decay, read_positive
from lopt.symmetry.spec import WeightSpec

SHAPES = {"a": (6, 5), "b": (5,), "c": (5, 6), "d": (8, 3), "s": ()}
SPEC = WeightSpec.parse({"a": "x! h", "b": "h", "c": "h x!", "d": "y z", "s": ""})
PAIRS = {
    "adam": (AdamNominal(), lambda: optax.adam(0.01)),
    "nadam": (NAdamNominal(b1=0.8), lambda: optax.nadam(0.01, b1=0.8)),
    "muon": (MuonNominal(), lambda: optax.contrib.muon(0.01)),
    "momentum": (MomentumNominal(0.9), lambda: optax.chain(optax.ema(0.9, debias=False), optax.scale(-0.01))),
}


def params(shapes=SHAPES):
    return {path: jax.random.normal(jax.random.key(i), shape) for i, (path, shape) in enumerate(shapes.items())}


def trained(tx, steps=4, shapes=SHAPES):
    @jax.jit
    def run(w):
        def step(carry, i):
            w, state = carry
            with jax.numpy_dtype_promotion("standard"):
                updates, state = tx.update(jax.tree.map(lambda x: jnp.sin(3 * x + i), w), state, w)
            return (optax.apply_updates(w, updates), state), None

        return jax.lax.scan(step, (w, tx.init(w)), jnp.arange(steps, dtype=jnp.float32))[0][0]

    return run(params(shapes))


@pytest.mark.parametrize("name", PAIRS)
def test_a_nominal_alone_is_the_optimizer_that_it_is_named_after(name):
    nominal, theirs = PAIRS[name]
    optimizer = LearnedOptimizerConfig(NominalRule(nominal=nominal, alpha=0.01), None, None).make(SPEC)
    theta = optimizer.init(jax.random.key(0))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), trained(optimizer.opt_fn(theta)), trained(theirs())
    )
    assert set(optimizer.scalars(theta)) == {"alpha", *theta["nominal"]}


@pytest.mark.parametrize(
    ("nominal", "theirs"),
    [
        (AdamNominal(), lambda rate: optax.adam(rate)),
        (MuonNominal(), lambda rate: find_baseline("muon").opt_fn(Hyper(rate))),
    ],
    ids=["adam", "muon"],
)
def test_without_f_the_gated_rule_is_the_rival_of_races(nominal, theirs):
    """With its schedule as it begins, a constant, and its size as the learning rate; of a convolution too."""
    config = LearnedOptimizerConfig(GatedRule(nominal=nominal, alpha=0.03), AdafactorFeatures(), DeepSetsConfig((4,)))
    optimizer, shapes = config.make(WeightSpec(())), SHAPES | {"window": (3, 3, 2, 4)}
    theta = optimizer.init(jax.random.key(0))
    theta["network"]["last"] = jax.tree.map(jnp.zeros_like, theta["network"]["last"])
    found, expected = (trained(tx, 3, shapes) for tx in (optimizer.opt_fn(theta), theirs(0.03)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), found, expected)


def test_of_a_convolution_window_and_inputs_are_one_side():
    """As with Muon's own code, and with optax's where it is told; a stack of matrices, and a kernel in one dimension, is a batch."""
    shapes = {"conv": (3, 3, 4, 6), "pointwise": (1, 1, 4, 6), "stack": (5, 4, 6), "layers": (2, 3, 4, 6), "bias": (6,)}
    weights = {path: jax.random.normal(jax.random.key(i), shape) for i, (path, shape) in enumerate(shapes.items())}
    grads = jax.tree.map(jnp.sin, weights)
    ours, theirs = scale_by_muon(), find_baseline("muon").opt_fn(Hyper(1.0))
    found, expected = (tx.update(grads, tx.init(weights), weights)[0] for tx in (ours, theirs))  # operation by operation
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, -b, rtol=2e-5, atol=2e-6), found, expected)
    flat = np.asarray(found["conv"]).reshape(36, 6)
    assert np.all(np.abs(np.linalg.svd(flat, compute_uv=False) - 1) < 0.4)
    whole = DirectionRule(nominal=MuonNominal(), over="matrix", orthogonalize=True)
    optimizer = LearnedOptimizerConfig(whole, Celo2Features(), DeepSetsConfig((4,))).make(WeightSpec(()))
    tx = optimizer.scale_by(optimizer.init(jax.random.key(0)))
    step = np.asarray(jax.jit(tx.update)(grads, tx.init(weights), weights)[0]["conv"])
    np.testing.assert_allclose(np.mean(step**2), 1, rtol=1e-3)
    singular = np.linalg.svd(step.reshape(36, 6), compute_uv=False)
    assert singular.max() < 2 * singular.min()
    by_position = np.mean(step**2, axis=(2, 3))
    assert by_position.max() > 1.01 * by_position.min(), "they are not normalised one by one"


ATTENTION = {
    "experts": {"bias": "e b", "kernel": "e a b"},
    "linear": {"bias": "b", "weight": "b a"},
    "out": {"bias": "b", "kernel": "heads v@heads b"},
    "query": {"bias": "heads q@heads", "kernel": "a heads q@heads"},
    "stack": {"bias": "layers! b", "kernel": "layers! a b"},
}


@pytest.mark.parametrize("rule", ["muon", "direction"])
def test_a_spec_says_which_axes_are_rows_and_columns(rule):
    """Attention with an axis of heads, weights with outputs first, stacks and experts step as the matrices that they are."""
    spec = WeightSpec.parse(ATTENTION)
    sizes = {"a": 5, "b": 4, "e": 2, "heads": 3, "q": 2, "v": 2, "layers": 2}
    shapes = {path: tuple(sizes[axis[0].name] for axis in axes) for path, axes in spec.leaves}
    weights = params(shapes)
    to_matrices = {
        "linear/weight": lambda x: x.T,
        "out/kernel": lambda x: x.reshape(-1, x.shape[-1]),
        "query/kernel": lambda x: x.reshape(len(x), -1),
        "query/bias": lambda x: x.reshape(1, -1),
    }
    flat = {path: to_matrices.get(path, lambda x: x)(x) for path, x in weights.items()}

    def step(weights, spec):
        grads = jax.tree.map(jnp.sin, weights)
        if rule == "muon":
            tx = scale_by_muon(spec=spec)
            return tx.update(grads, tx.init(weights), weights)[0]
        whole = DirectionRule(nominal=MuonNominal(), over="matrix", orthogonalize=True, scale="inputs")
        optimizer = LearnedOptimizerConfig(whole, Celo2Features(), DeepSetsConfig((4,))).make(spec)
        theta = optimizer.init(jax.random.key(0))
        theta["network"]["last"] = jax.tree.map(jnp.zeros_like, theta["network"]["last"])
        tx = optimizer.scale_by(theta)
        return jax.jit(tx.update)(grads, tx.init(weights), weights)[0]

    found, expected, blind = step(weights, spec), step(flat, WeightSpec(())), step(weights, WeightSpec(()))
    assert set(found) == set(expected) == set(spec.paths)
    for path, x in found.items():
        flattened = to_matrices.get(path, lambda x: x)(x)
        np.testing.assert_allclose(flattened, expected[path], rtol=2e-5, atol=2e-6, err_msg=path)
    assert np.abs(found["query/kernel"] - blind["query/kernel"]).max() > 0.05, "without the spec it is another step"


def test_the_step_of_permuted_heads_is_the_permuted_step():
    spec = WeightSpec.parse(ATTENTION)
    sizes = {"a": 5, "b": 4, "e": 2, "heads": 3, "q": 2, "v": 2, "layers": 2}
    weights = params({path: tuple(sizes[axis[0].name] for axis in axes) for path, axes in spec.leaves})
    moved = spec.sample(jax.random.key(1), weights)
    tx = scale_by_muon(spec=spec)

    def step(weights):
        return tx.update(jax.tree.map(jnp.sin, weights), tx.init(weights), weights)[0]

    found, expected = step(spec.permute(weights, moved)), spec.permute(step(weights), moved)
    assert set(moved) == {"a", "b", "e", "heads", "q", "v"}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)


def test_no_nominal_does_nothing():
    optimizer = LearnedOptimizerConfig(NominalRule(nominal=NoNominal()), None, None).make(SPEC)
    found = trained(optimizer.opt_fn(optimizer.init(jax.random.key(0))))
    jax.tree.map(np.testing.assert_array_equal, found, params())


def test_matrices_of_a_shape_are_orthogonalised_together_as_alone():
    tensors = [
        jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(6, 5), (5, 6), (3, 5, 6), (4, 9), (2, 0, 3)])
    ]
    for x, y in zip(tensors, newton_schulz(tensors), strict=True):
        np.testing.assert_allclose(y, newton_schulz([x])[0], atol=1e-5)
        assert y.shape == x.shape
        if x.size:
            singular = np.linalg.svd(np.asarray(y), compute_uv=False)
            assert np.all((singular > 0.6) & (singular < 1.3))


def test_scalars_stay_in_range_whatever_is_added():
    for shift in (-100.0, -1.0, 0.0, 1.0, 3.0):
        assert 0 <= float(read_decay(decay(0.9, "g") + shift)) < 1
        assert float(read_positive(positive(0.1, "alpha") + shift)) > 0 or shift == -100.0
    np.testing.assert_allclose(read_decay(decay(0.999, "g")), 0.999, rtol=1e-6)
    np.testing.assert_allclose(read_positive(positive(0.1, "alpha")), 0.1, rtol=1e-6)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda: NominalRule(alpha=0.0), "alpha must be positive, got 0.0"),
        (lambda: NominalRule(nominal=AdamNominal(b1=1.0)), r"b1 must lie in \[0, 1\), got 1.0"),
        (lambda: NominalRule(weight_decay=-1.0), "weight_decay must not be negative"),
        (lambda: NominalRule(learn_weight_decay=True), "weight_decay, where it is learned, must be positive, got 0.0"),
    ],
)
def test_values_out_of_range_are_named(rule, message):
    with pytest.raises(ValueError, match=message):
        LearnedOptimizerConfig(rule(), None, None).make(SPEC)
