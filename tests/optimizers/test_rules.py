"""Every rule with features and networks of every kind: the symmetry, the scale of losses, manners in other people's loops."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopt.config import from_dict, to_dict
from lopt.features.base import Context
from lopt.features.momenta import Momenta
from lopt.features.presets import AdafactorFeatures, Celo2Features, CustomFeatures, PaperFeatures
from lopt.features.second_moments import GradientOverRoot, MomentaOverRoot
from lopt.features.time import FractionLeft, LossTrend, Time
from lopt.features.weights import Gradient, TensorSize, Value
from lopt.networks.update import DeepSetsConfig, PooledDeepSetsConfig, UNFConfig
from lopt.optimizers.config import LearnedOptimizerConfig
from lopt.optimizers.direction import DirectionRule
from lopt.optimizers.gated import GatedRule, NominalRule
from lopt.optimizers.magnitude import MagnitudeRule
from lopt.optimizers.momentum import MomentumRule, SGDMRule
from lopt.optimizers.nominals import MomentumNominal, MuonNominal, NAdamNominal, NoNominal
from lopt.optimizers.schedules import ScheduleConfig
from lopt.symmetry.spec import WeightSpec

SPEC = WeightSpec.parse({"k": "i! h", "b": "h", "r": "h g", "o": "g o!"})
SHAPES = {"k": (4, 6), "b": (6,), "r": (6, 5), "o": (5, 3)}
FREE = CustomFeatures(
    parts=(Value(), Gradient(), Momenta(bias_correction=True), GradientOverRoot(eps=1e-30), MomentaOverRoot(eps=1e-30), Time())
)
SMALL = {
    "momentum": LearnedOptimizerConfig(MomentumRule(beta=0.1), PaperFeatures(), UNFConfig((6,))),
    "gated adam": LearnedOptimizerConfig(GatedRule(), AdafactorFeatures(), UNFConfig((6,), share="role")),
    "gated muon": LearnedOptimizerConfig(
        GatedRule(nominal=MuonNominal(), schedule=ScheduleConfig("cosine", fraction=True)),
        FREE,
        UNFConfig((6,), equivariant=(3,)),
    ),
    "direction": LearnedOptimizerConfig(DirectionRule(nominal=NAdamNominal()), Celo2Features(), DeepSetsConfig((6,))),
    "orthogonal direction": LearnedOptimizerConfig(
        DirectionRule(gated=True, orthogonalize=True, scale="inputs", relative=True, fan_in=True, weight_decay=0.1),
        FREE,
        UNFConfig((6,), share="role"),
    ),
    "magnitude": LearnedOptimizerConfig(
        MagnitudeRule(learn_weight_decay=True, weight_decay=0.01), AdafactorFeatures(), PooledDeepSetsConfig((6,))
    ),
    "sgdm": LearnedOptimizerConfig(SGDMRule(), None, None),
    "nominal": LearnedOptimizerConfig(NominalRule(nominal=MomentumNominal(), schedule=ScheduleConfig()), None, None),
}
STEPS = {"num_steps": 20, "value": jnp.float32(1.5)}


def params(key=0):
    return {path: jax.random.normal(jax.random.fold_in(jax.random.key(key), i), s) for i, (path, s) in enumerate(SHAPES.items())}


def theta_of(optimizer):
    """theta with everything away from its start, so that nothing is hidden by a zero."""
    theta = optimizer.init(jax.random.key(1))
    leaves, structure = jax.tree.flatten(theta)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    return jax.tree.unflatten(structure, [x + 0.03 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])


def trained(tx, w, steps=3):
    @jax.jit
    def run(w):
        state = tx.init(w)

        def step(carry, i):
            w, state = carry
            grads = jax.tree.map(lambda x: jnp.sin(3 * x), w)
            updates, state = tx.update(grads, state, w, **STEPS)
            return (optax.apply_updates(w, updates), state), None

        return jax.lax.scan(step, (w, state), jnp.arange(steps))[0][0]

    return run(w)


@pytest.mark.parametrize("name", SMALL)
def test_a_permuted_training_is_the_training_permuted(name):
    optimizer = SMALL[name].make(SPEC)
    tx = optimizer.opt_fn(theta_of(optimizer))
    element = SPEC.sample(jax.random.key(3), params())
    expected = SPEC.permute(trained(tx, params()), element)
    found = trained(tx, SPEC.permute(params(), element))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-4), found, expected)
    moved = max(
        float(jnp.max(jnp.abs(a - b)))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(SPEC.permute(params(), element)), strict=True)
    )
    assert moved > 1e-4


@pytest.mark.parametrize("name", SMALL)
def test_configs_stand_in_files_by_name(name):
    config = SMALL[name]
    assert from_dict(to_dict(config)) == config
    assert not re.search(r"'class': '[^']*:", str(to_dict(config)))


@pytest.mark.parametrize(
    ("gated", "scale", "scale_of"), [(False, "one", lambda x: 1.0), (True, "inputs", lambda x: x.shape[0] ** -0.5)]
)
def test_a_direction_without_f_is_its_nominal_step_normalised(gated, scale, scale_of):
    rule = DirectionRule(nominal=MuonNominal(), gated=gated, vectors=0.5, scale=scale)
    optimizer = LearnedOptimizerConfig(rule, FREE, DeepSetsConfig((6,))).make(SPEC)
    theta = optimizer.init(jax.random.key(0))
    theta["network"] = jax.tree.map(jnp.zeros_like, theta["network"])
    tx, muon = optimizer.scale_by(theta), MuonNominal().make(MuonNominal().init(), SPEC)
    grads = params(1)
    found = tx.update(grads, tx.init(params()), params())[0]
    expected = muon.update(grads, muon.init(params()), params())[0]
    for path, x in expected.items():
        size = (0.5 if x.ndim < 2 else scale_of(x)) / jnp.sqrt(jnp.mean(jnp.square(x)))
        np.testing.assert_allclose(found[path], size * x, rtol=1e-5, atol=1e-6)


def test_momenta_of_muon_grow_longer_with_the_root_of_time():
    nominal = MuonNominal(beta=0.5, b1=0.8, lengthen=3.0)
    tx = nominal.make(nominal.init(), SPEC)
    expected, state = jax.tree.map(jnp.zeros_like, params()), tx.init(params())
    for t in range(1, 8):
        grads, longer = params(t), (1 + t / 3) ** 0.5
        expected = {
            path: mean + ((0.2 if mean.ndim < 2 else 0.5) / longer) * (grads[path] - mean) for path, mean in expected.items()
        }
        state = tx.update(grads, state, params())[1]
    for path, mean in expected.items():
        np.testing.assert_allclose(state.mu[path], mean, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="lengthen must be a positive number of steps, got 0"):
        MuonNominal(lengthen=0.0).init()


RULES = {
    "momentum": MomentumRule(),
    "gated": GatedRule(),
    "direction": DirectionRule(),
    "magnitude": MagnitudeRule(),
    "sgdm": SGDMRule(),
    "nominal": NominalRule(),
}


def first_step(rule, spec=SPEC):
    """The first step of a rule with a small network, and its size."""
    parts = (FREE, DeepSetsConfig((6,))) if rule.outputs else (None, None)
    optimizer = LearnedOptimizerConfig(rule, *parts).make(spec)
    theta, w = theta_of(optimizer), params()
    tx = optimizer.opt_fn(theta)
    updates, _ = jax.jit(tx.update)(jax.tree.map(lambda x: jnp.sin(3 * x), w), tx.init(w), w, **STEPS)
    return updates, float(rule.size(theta, Context(jnp.int32(0), STEPS["value"], jnp.float32(STEPS["num_steps"]))))


@pytest.mark.parametrize("name", RULES)
def test_what_every_rule_may_have(name):
    """Steps times the size of a tensor, decay by the weights, hidden layers divided by their inputs."""
    rule, w = RULES[name], params()
    plain, size = first_step(rule)
    relative, _ = first_step(dataclasses.replace(rule, relative=True))
    decayed, _ = first_step(dataclasses.replace(rule, weight_decay=0.5))
    divided, _ = first_step(dataclasses.replace(rule, fan_in=True))
    for path, x in w.items():
        np.testing.assert_allclose(relative[path], plain[path] * jnp.sqrt(jnp.mean(x**2)), rtol=1e-5)
        np.testing.assert_allclose(decayed[path], plain[path] - size * 0.5 * x, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(divided[path], plain[path] / (6 if path == "r" else 1), rtol=1e-5)


def test_without_a_spec_the_number_of_inputs_is_not_guessed():
    with pytest.raises(ValueError, match="fan_in reads the spec of the weights, which has no leaf 'k'"):
        first_step(DirectionRule(fan_in=True), WeightSpec(()))


def test_what_has_had_no_gradient_stays():
    tx = SMALL["orthogonal direction"].make(SPEC)
    tx = tx.opt_fn(theta_of(tx))
    w, grads = params(), params(1)
    grads["r"], grads["b"] = jnp.zeros_like(grads["r"]), jnp.zeros_like(grads["b"])
    first, state = tx.update(grads, tx.init(w), w)
    decay = {path: -0.01 * 0.1 * w[path] for path in ("r", "b")}
    for path, expected in decay.items():
        np.testing.assert_allclose(first[path], expected, rtol=1e-5, err_msg=path)
    second = tx.update(params(2), state, w)[0]
    assert all(float(jnp.max(jnp.abs(second[path] - expected))) > 1e-4 for path, expected in decay.items())


def test_scaled_by_inputs_a_direction_is_as_large_as_muons():
    """The directions of optax.contrib.muon, but for Newton-Schulz's singular values, which are only about one."""
    rule = DirectionRule(nominal=MuonNominal(), scale="inputs")
    tx = LearnedOptimizerConfig(rule, FREE, DeepSetsConfig((6,))).make(WeightSpec(()))
    theta = tx.init(jax.random.key(0))
    theta["network"] = jax.tree.map(jnp.zeros_like, theta["network"])
    tx = tx.scale_by(theta)
    weights = {f"{r}x{c}": jax.random.normal(jax.random.key(r), (r, c)) for r, c in ((64, 16), (16, 64), (32, 32))}
    muon = optax.contrib.muon(1.0)
    with jax.numpy_dtype_promotion("standard"):
        expected = muon.update(weights, muon.init(weights), weights)[0]
    found = tx.update(weights, tx.init(weights), weights)[0]
    for path, x in expected.items():
        assert float(jnp.linalg.norm(found[path])) == pytest.approx(float(jnp.linalg.norm(x)), rel=0.25)


def test_scale_by_is_the_positive_direction():
    for name, size in (("direction", 0.01), ("sgdm", 1.0)):
        optimizer = SMALL[name].make(SPEC)
        theta = optimizer.init(jax.random.key(0))
        whole, part = optimizer.opt_fn(theta), optimizer.scale_by(theta)
        grads = params(1)
        a = whole.update(grads, whole.init(params()), params())[0]
        b = part.update(grads, part.init(params()), params())[0]
        jax.tree.map(lambda a, b, size=size: np.testing.assert_allclose(a, -size * b, rtol=1e-5), a, b)


def test_a_rule_that_anneals_asks_for_the_number_of_steps():
    tx = LearnedOptimizerConfig(GatedRule(schedule=ScheduleConfig("cosine")), FREE, DeepSetsConfig((4,))).make(SPEC)
    tx = tx.opt_fn(tx.init(jax.random.key(0)))
    with pytest.raises(ValueError, match=r"the rule's schedule sees how much of the training is left: say .* num_steps=N"):
        tx.update(params(), tx.init(params()), params())


@pytest.mark.parametrize(("kind", "message"), [(FractionLeft(), "fraction_left"), (LossTrend(), "loss_trend")])
def test_features_that_need_something_say_so(kind, message):
    features = CustomFeatures(parts=(Value(), kind)).make()
    with pytest.raises(ValueError, match=message):
        features.update(params(), features.init(params()), params(), Context(jnp.int32(0)))


def test_features_of_tensors_and_of_the_training():
    features = CustomFeatures(parts=(Value(), TensorSize(), LossTrend((0.5,)), FractionLeft())).make()
    assert (len(features.channels), features.num_tensor, features.num_shared) == (1, 3, 12)
    context = Context(jnp.int32(0), jnp.float32(2.0), jnp.float32(10.0))
    seen, state = features.update(params(), features.init(params()), params(), context)
    assert {path: x.shape for path, x in seen.tensors.items()} == dict.fromkeys(SHAPES, (3,))
    np.testing.assert_allclose(seen.shared[0], 0.0, atol=1e-6)  # the first loss is its own average
    seen, _ = features.update(params(), state, params(), context._replace(count=jnp.int32(1), loss=jnp.float32(1.0)))
    assert 0 < float(seen.shared[0]) < 1  # it fell
    network = UNFConfig((5,)).make(SPEC, features, 2)
    out = network.apply(network.init(jax.random.key(0)), seen)
    assert {path: y.shape for path, y in out.items()} == {path: (2, *shape) for path, shape in SHAPES.items()}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LearnedOptimizerConfig(SGDMRule(), PaperFeatures(), None), "SGDMRule has no network: set features and network to None"),
        (LearnedOptimizerConfig(GatedRule(), None, DeepSetsConfig()), "GatedRule needs a network and its features"),
        (LearnedOptimizerConfig(DirectionRule(learning_rate=0.0), FREE, DeepSetsConfig()), "learning_rate must be positive"),
        (LearnedOptimizerConfig(DirectionRule(nominal=NoNominal(), gated=True), FREE, DeepSetsConfig()), "nominal is none"),
        (LearnedOptimizerConfig(GatedRule(), FREE, UNFConfig(terms=0.0)), "multiple of a layer's own terms must be positive"),
        (LearnedOptimizerConfig(GatedRule(), CustomFeatures(parts=()), DeepSetsConfig()), "at least one kind"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_named(config, message):
    with pytest.raises(ValueError, match=message):
        config.make(SPEC)


# --- In other people's loops: the cases that optax tests its own transforms with


@pytest.fixture(params=["momentum", "gated adam", "orthogonal direction", "nominal"])
def tx(request):
    optimizer = SMALL[request.param].make(SPEC)
    return optimizer.opt_fn(theta_of(optimizer))


def test_jit_is_eager(tx):
    args = params(1), tx.init(params()), params()
    eager, compiled = tx.update(*args, **STEPS)[0], jax.jit(tx.update)(*args, **STEPS)[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), compiled, eager)


def test_states_are_shaped_like_params_and_hold_still(tx):
    """The state keeps its structure, shapes and dtypes; bfloat16 params keep theirs."""
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params())
    before = jax.eval_shape(tx.init, half)
    updates, after = jax.eval_shape(lambda g, w: tx.update(g, tx.init(w), w, **STEPS), half, half)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), before) == jax.tree.map(lambda x: (x.shape, x.dtype), after)
    assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}


LEAN = CustomFeatures(parts=(Value(), Momenta((0.9,)), Time()))
PLAIN, BY_ROLE = DeepSetsConfig((4,)), UNFConfig((4,), share="role")
MANNERS = {  # few features: they are computed alike whatever the loop, and take long to compile
    "gated adam": LearnedOptimizerConfig(GatedRule(), LEAN, PLAIN),
    "sgdm": SMALL["sgdm"],
    "momentum": LearnedOptimizerConfig(MomentumRule(beta=0.1), LEAN, PLAIN),
    "gated muon": LearnedOptimizerConfig(GatedRule(nominal=MuonNominal()), LEAN, PLAIN),
    "direction": LearnedOptimizerConfig(DirectionRule(nominal=NAdamNominal()), LEAN, BY_ROLE),
    "magnitude": LearnedOptimizerConfig(MagnitudeRule(), LEAN, PLAIN),
}
every_rule = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if i > 1 else []) for i, name in enumerate(MANNERS)]
)


@functools.cache
def transform_of(name):
    optimizer = MANNERS[name].make(SPEC)
    return optimizer.opt_fn(theta_of(optimizer))


def steps_of(tx, grads, w):
    """Updates of a training on given gradients, [steps, ...]."""

    @jax.jit
    def run(grads, w):
        def step(carry, g):
            w, state = carry
            updates, state = tx.update(g, state, w, **STEPS)
            return (optax.apply_updates(w, updates), state), updates

        return jax.lax.scan(step, (w, tx.init(w)), grads)[1]

    with jax.numpy_dtype_promotion("standard"):
        return run(grads, w)


def stacked(*grads):
    return jax.tree.map(lambda *xs: jnp.stack(xs), *grads)


@functools.cache
def two_steps(name):
    """The updates that wrappers are to leave as they are."""
    return steps_of(transform_of(name), stacked(params(1), params(2)), params())


def assert_same_steps(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected)


@pytest.mark.parametrize("name", SMALL)
def test_empty_trees(name):
    optimizer = SMALL[name].make(SPEC)

    def update():
        tx = optimizer.opt_fn(optimizer.init(jax.random.key(1)))
        return tx.update({}, tx.init({}), {}, **STEPS)[0]

    assert jax.eval_shape(update) == {}


@every_rule
def test_leaves_that_are_none_stay_none(name):
    nothing = {"frozen": None, "more": {"frozen": None}}
    found = steps_of(transform_of(name), stacked(params(1), params(2)) | nothing, params() | nothing)
    assert {path: found.pop(path) for path in nothing} == nothing
    assert_same_steps(found, two_steps(name))


@every_rule
def test_gradients_of_several_batches_are_averaged(name):
    """MultiSteps: every second step is one with the mean of two gradients; in between nothing moves."""
    parts = [jax.tree.map(lambda x, more=more: x + more, params(key)) for key in (1, 2) for more in (0.5, -0.5)]
    found = steps_of(optax.MultiSteps(transform_of(name), 2).gradient_transformation(), stacked(*parts), params())
    assert not any(np.any(x[::2]) for x in found.values())
    assert_same_steps({path: x[1::2] for path, x in found.items()}, two_steps(name))


@every_rule
def test_gradients_that_are_not_finite_are_left_out(name):
    """apply_if_finite: of such a step neither weights nor state know."""
    a, b = params(1), params(2)
    broken = a | {"b": a["b"].at[0].set(jnp.nan)}
    found = steps_of(optax.apply_if_finite(transform_of(name), 3), stacked(a, broken, b), params())
    assert not any(np.any(x[1]) for x in found.values())
    assert_same_steps({path: x[::2] for path, x in found.items()}, two_steps(name))


@every_rule
def test_steps_of_bfloat16_weights_are_those_of_float32_rounded(name):
    tx = transform_of(name)
    half, wide = (lambda tree, dtype=dtype: jax.tree.map(lambda x: x.astype(dtype), tree) for dtype in ("bfloat16", "float32"))

    @jax.jit
    def run(grads, w):
        def step(carry, g):
            w, state, wide_state = carry
            expected, wide_state = tx.update(wide(g), wide_state, wide(w), **STEPS)
            found, state = tx.update(g, state, w, **STEPS)
            return (optax.apply_updates(w, found), state, wide_state), (found, expected)

        return jax.lax.scan(step, (w, tx.init(w), tx.init(wide(w))), grads)[1]

    found, expected = run(half(stacked(params(1), params(2), params(3))), half(params()))
    assert {x.dtype for x in found.values()} == {jnp.dtype(jnp.bfloat16)}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-8, atol=1e-6), wide(found), expected)


def test_wrappers_of_optax(tx):
    """MultiSteps, apply_if_finite, vmap and donated states."""
    w = params()
    with jax.numpy_dtype_promotion("standard"):
        wrapped = optax.MultiSteps(optax.apply_if_finite(tx, 3), 2)

        @jax.jit
        def two(w):
            state = wrapped.init(w)
            _, state = wrapped.update(params(1), state, w, **STEPS)
            return wrapped.update(params(1), state, w, **STEPS)[0]

        found = two(w)
    expected = jax.jit(lambda w: tx.update(params(1), tx.init(w), w, **STEPS)[0])(w)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected)
    many = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), w)
    batched = jax.jit(jax.vmap(lambda w: tx.update(params(1), tx.init(w), w, **STEPS)[0]))(many)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-4, atol=1e-6), batched, expected)
    donated = jax.jit(lambda g, s, w: tx.update(g, s, w, **STEPS), donate_argnums=1)(params(1), tx.init(w), w)[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), donated, expected)


def test_masked_and_by_parts():
    """A network that needs no spec trains the part that it is given, beside another optimizer; its rate may be injected."""
    config = dataclasses.replace(SMALL["direction"], features=FREE)
    theta = config.make(SPEC).init(jax.random.key(0))

    def make(learning_rate):
        tx = config.make(WeightSpec(())).scale_by(theta)
        return optax.chain(tx, optax.scale_by_learning_rate(learning_rate))

    labels = {path: "learned" if path in ("k", "r") else "sgd" for path in SHAPES}
    tx = optax.multi_transform({"learned": optax.inject_hyperparams(make)(learning_rate=0.1), "sgd": optax.sgd(0.1)}, labels)
    w, g = params(), params(1)
    with jax.numpy_dtype_promotion("standard"):
        updates = jax.jit(lambda: tx.update(g, tx.init(w), w)[0])()
    np.testing.assert_allclose(updates["b"], -0.1 * g["b"], rtol=1e-6)
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(updates["k"] ** 2)), 0.1, rtol=1e-4)
    alone = make(0.1)
    part = {path: w[path] for path in ("k", "r")}
    expected = alone.update({path: g[path] for path in part}, alone.init(part), part)[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), {p: updates[p] for p in part}, expected)
