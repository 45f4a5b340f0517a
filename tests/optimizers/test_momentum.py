"""The update rule: its arithmetic, its equivariance, and its manners as an optax transform."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopt.features.presets import NUM_CHANNELS, PaperFeatures
from lopt.features.time import time_features
from lopt.layers.digest import clip_and_normalize
from lopt.networks.update import DeepSetsConfig, UNFConfig
from lopt.optimizers.config import LearnedOptimizerConfig
from lopt.optimizers.momentum import LearnedMomentumConfig, LearnedSGDMConfig, MomentumRule
from lopt.symmetry.spec import WeightSpec, named_leaves
from tests.paper_features import SEEN, weight_features

SPEC = WeightSpec.parse(
    {"dense0": {"bias": "hidden", "kernel": "pixels! hidden"}, "dense1": {"bias": "classes!", "kernel": "hidden classes!"}}
)
CONFIGS = {
    "unf": LearnedMomentumConfig(network=UNFConfig((8, 8)), beta=0.1),
    "deep_sets": LearnedMomentumConfig(network=DeepSetsConfig((8, 8)), beta=0.1),
    "sgdm": LearnedSGDMConfig(),
}


def make_params(key=0, sizes=(6, 5, 3), dtype=jnp.float32):
    i, h, o = sizes
    shapes = {"dense0": {"bias": (h,), "kernel": (i, h)}, "dense1": {"bias": (o,), "kernel": (h, o)}}
    leaves, structure = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
    keys = jax.random.split(jax.random.key(key), len(leaves))
    return jax.tree.unflatten(structure, [jax.random.normal(k, s, dtype) for k, s in zip(keys, leaves, strict=True)])


@pytest.fixture(params=CONFIGS)
def optimizer(request):
    return CONFIGS[request.param].make(SPEC)


def trained(optimizer, params, steps=2, transform=None, **extra):
    """Params after a few steps on a fixed quadratic, in one compiled call."""

    @jax.jit
    def run(params):
        tx = transform or optimizer.opt_fn(optimizer.init(jax.random.key(0)))
        state = tx.init(params)
        for _ in range(steps):
            updates, state = tx.update(params, state, params, **extra)
            params = optax.apply_updates(params, updates)
        return params, state

    return run(params)


@pytest.mark.parametrize(("network", "count"), [(UNFConfig(terms=None), 3783), (DeepSetsConfig(), 2788)])
def test_parameter_counts_of_the_paper(network, count):
    """The MLP task's f with its three scalars (paper, appendix)."""
    theta = jax.eval_shape(LearnedMomentumConfig(network=network).make(SPEC).init, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(theta)) == count


def test_start_of_the_paper():
    theta = LearnedMomentumConfig(network=DeepSetsConfig((4,))).make(SPEC).init(jax.random.key(0))
    assert [round(float(theta[name]), 6) for name in ("alpha", "g0", "beta")] == [0.1, 0.9, 0.001]


def test_learned_sgdm_is_sgd_with_momentum():
    params = make_params()
    ours, _ = trained(CONFIGS["sgdm"].make(SPEC), params, steps=4)
    theirs, _ = trained(None, params, steps=4, transform=optax.sgd(0.1, momentum=0.9))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)


TIMES = np.array([1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5])


def paper_steps(theta, w, gradient, steps):
    """The paper's program in NumPy: updates of a dict of tensors, step by step.

    W <- W - alpha (m^{g0} + beta f(W, grad, {m^{gi}}, t)), m^g <- g m^g + grad; features of weights are clipped and divided by their
    size over the tensor, f is an MLP with ReLU.
    """
    layers = [*theta["network"]["pointwise"].values(), theta["network"]["last"]]
    m0, momenta = dict.fromkeys(w, 0.0), {path: [0.0] * 6 for path in w}
    for t in range(steps):
        updates = {}
        for path, g in ((path, gradient(np, x, t)) for path, x in w.items()):
            m0[path] = theta["g0"] * m0[path] + g
            momenta[path] = [d * m + g for d, m in zip((0.1, 0.5, 0.9, 0.99, 0.999, 0.9999), momenta[path], strict=True)]
            x = [np.clip(x, -1, 1) for x in (w[path], g, *momenta[path])]
            x = [x / (np.sqrt(np.mean(x**2)) + 1e-5) for x in x] + [np.full(g.shape, time) for time in np.tanh(t / TIMES - 1)]
            x = np.stack(x, axis=-1)
            for layer in layers:
                x = np.maximum(x, 0) if layer is not layers[0] else x
                x = x @ layer["kernel"] + layer["bias"]
            updates[path] = -theta["alpha"] * (m0[path] + theta["beta"] * x[..., 0])
        w = {path: x + updates[path] for path, x in w.items()}
        yield updates


def test_the_rule_of_the_paper_by_hand():
    """Features, network and rule in NumPy and in double precision, on gradients that depend on the weights."""
    gradient = lambda numpy, x, t: numpy.cos(2 * x + t)  # noqa: E731
    config = LearnedOptimizerConfig(MomentumRule(alpha=0.05, g0=0.8, beta=0.7), PaperFeatures(), DeepSetsConfig((8, 8)))
    optimizer = config.make(SPEC)
    theta = optimizer.init(jax.random.key(2))
    theta["network"] = jax.tree.map(  # no bias is zero
        lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape), theta["network"]
    )
    params = make_params()
    double = jax.tree.map(lambda x: np.asarray(x, np.float64), theta)
    named = {path: np.asarray(x, np.float64) for path, x in named_leaves(params)}
    tx = optimizer.opt_fn(theta)

    @jax.jit
    def step(params, state, t):
        updates, state = tx.update(jax.tree.map(lambda x: gradient(jnp, x, t), params), state, params)
        return updates, optax.apply_updates(params, updates), state

    state = tx.init(params)
    for t, expected in enumerate(paper_steps(double, named, gradient, 3)):
        updates, params, state = step(params, state, jnp.float32(t))
        for path, update in named_leaves(updates):
            size = np.max(np.abs(expected[path]))
            np.testing.assert_allclose(update, expected[path], rtol=1e-5, atol=2e-6 * size, err_msg=f"{path} in step {t}")


def test_features_are_clipped_then_normalised():
    x = jnp.asarray([[[3.0, -0.5], [0.1, -7.0]], [[1e-3, 1e-3], [-1e-3, 1e-3]]])
    clipped = np.clip(x, -1, 1)
    expected = clipped / (np.sqrt(np.mean(clipped**2, axis=(1, 2), keepdims=True)) + 1e-5)
    np.testing.assert_allclose(clip_and_normalize(x), expected, rtol=1e-6)
    np.testing.assert_array_equal(clip_and_normalize(jnp.zeros((2, 3))), np.zeros((2, 3)))


def test_features_have_19_channels():
    params = make_params()
    momenta = jax.tree.map(lambda w: jnp.zeros((6, *w.shape)), params)
    features = weight_features(params, params, momenta, jnp.int32(30))
    assert [x.shape for x in features.channels["dense0/kernel"]] == [(6, 5)] * 8
    assert 8 + features.shared.shape[0] == NUM_CHANNELS == SEEN.num_channels == 19
    np.testing.assert_allclose(time_features(jnp.int32(30))[3], 0.0, atol=1e-7)


@pytest.mark.parametrize("name", ["unf", "deep_sets"])
def test_updates_commute_with_the_group(name):
    optimizer = CONFIGS[name].make(SPEC)
    params = make_params()
    element = SPEC.relax().sample(jax.random.key(3), params)  # the network is equivariant to the relaxed group too
    moved, _ = trained(optimizer, SPEC.permute(params, {k: v for k, v in element.items() if k == "hidden"}))
    out, _ = trained(optimizer, params)
    expected = SPEC.permute(out, {"hidden": element["hidden"]})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), moved, expected)
    moved, _ = trained(optimizer, SPEC.relax().permute(params, element))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), moved, SPEC.relax().permute(out, element))


def test_chains_and_ignores_extra_arguments(optimizer):
    params = make_params()
    tx = optimizer.opt_fn(optimizer.init(jax.random.key(0)))
    chained = optax.chain(optax.clip_by_global_norm(1e9), tx, optax.scale(0.5), optax.add_decayed_weights(0.0))
    half, _ = trained(optimizer, params, steps=1, transform=chained, value=jnp.float32(1.0), anything=3)
    full, _ = trained(optimizer, params, steps=1)
    jax.tree.map(lambda p, h, f: np.testing.assert_allclose(h - p, (f - p) / 2, atol=1e-6), params, half, full)


def test_vmaps_over_params_and_over_theta(optimizer):
    params = jax.tree.map(lambda *xs: jnp.stack(xs), make_params(0), make_params(1))

    def one(params, key):
        tx = optimizer.opt_fn(optimizer.init(key))
        return tx.update(params, tx.init(params), params)[0]

    keys = jax.random.split(jax.random.key(0), 2)
    batched = jax.jit(jax.vmap(one))(params, keys)
    single = jax.jit(one)(make_params(1), keys[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, atol=1e-6), batched, single)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_keeps_the_dtype_of_params(optimizer, dtype):
    params = make_params(dtype=dtype)
    out, state = trained(optimizer, params)
    assert {x.dtype for x in jax.tree.leaves(out)} == {jnp.dtype(dtype)}
    assert {x.dtype for x in jax.tree.leaves((state.nominal, state.features))} == {jnp.dtype(jnp.float32)}


def test_state_holds_no_params_and_keeps_its_shape(optimizer):
    params = make_params()
    tx = optimizer.opt_fn(optimizer.init(jax.random.key(0)))
    state = tx.init(params)
    after = jax.eval_shape(lambda: tx.update(params, state, params)[1])
    assert jax.tree.structure(state) == jax.tree.structure(after)
    jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype) or pytest.fail(f"{a} became {b}"), state, after)
    assert all(not np.any(x) for x in jax.tree.leaves(state))


def test_no_retrace_on_the_second_step(optimizer):
    params, traces = make_params(), 0
    theta = optimizer.init(jax.random.key(0))

    @jax.jit
    def step(theta, params, state):
        nonlocal traces
        traces += 1
        updates, state = optimizer.opt_fn(theta).update(params, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.opt_fn(theta).init(params)
    for _ in range(3):
        params, state = step(theta, params, state)
    assert traces == 1


def test_needs_params(optimizer):
    tx = optimizer.opt_fn(optimizer.init(jax.random.key(0)))
    with pytest.raises(ValueError, match="update\\(grads, state, params\\)"):
        tx.update(make_params(), tx.init(make_params()))


def test_serves_any_widths_of_its_spec(optimizer):
    theta = optimizer.init(jax.random.key(0))
    shapes = jax.eval_shape(
        lambda p: optimizer.opt_fn(theta).update(p, optimizer.opt_fn(theta).init(p), p)[0], make_params(sizes=(9, 7, 4))
    )
    assert shapes["dense0"]["kernel"].shape == (9, 7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LearnedSGDMConfig(alpha=0.0).make(SPEC), "alpha must be positive"),
        (lambda: LearnedSGDMConfig(g0=1.0).make(SPEC), "g0 must lie in"),
        (lambda: LearnedMomentumConfig(network=UNFConfig(())).make(SPEC), "at least one positive width"),
        (lambda: LearnedMomentumConfig(network=UNFConfig((8, 0))).make(SPEC), "at least one positive width"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_momenta_kept_in_bfloat16_are_computed_in_float32():
    exact, rounded = (
        LearnedMomentumConfig(beta=0.1, network=UNFConfig((8,)), momenta_dtype=d).make(SPEC) for d in ("float32", "bfloat16")
    )
    params = make_params()
    (expected, _), (found, state) = trained(exact, params, steps=3), trained(rounded, params, steps=3)
    assert {m.dtype for m in jax.tree.leaves(state.features)} == {jnp.dtype(jnp.bfloat16)}
    assert {m.dtype for m in jax.tree.leaves(state.nominal)} == {jnp.dtype(jnp.float32)}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.02, atol=0.02), found, expected)
    different = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), found, expected)
    assert any(jax.tree.leaves(different))


def test_f_may_begin_small():
    """Its last layer alone, so that f begins near zero and all of its inputs matter as before."""
    usual, small = (
        LearnedMomentumConfig(network=UNFConfig((4,)), start=start).make(SPEC).init(jax.random.key(0))["network"]
        for start in (1.0, 0.1)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(0.1 * a, b, rtol=1e-6), usual["last"], small["last"])
    jax.tree.map(np.testing.assert_array_equal, usual["pointwise"], small["pointwise"])
    with pytest.raises(ValueError, match="start must not be negative, got -1"):
        LearnedMomentumConfig(network=UNFConfig((4,)), start=-1).make(SPEC)
