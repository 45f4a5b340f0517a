"""Update networks and predictors of every kind: equivariant or invariant, trainable, and particular about what they need."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lopt.layers.digest
from lopt.features.presets import NUM_TIME_CHANNELS, NUM_WEIGHT_CHANNELS
from lopt.layers.unf import unf_layer
from lopt.networks.predictors import invariant_pooling, invariant_predictor
from lopt.networks.update import DeepSetsConfig, NFNConfig, PooledDeepSetsConfig, UNFConfig
from lopt.optimizers.momentum import LearnedMomentumConfig
from lopt.symmetry.spec import WeightSpec
from tests.paper_features import SEEN, finished, weight_features

MLP = WeightSpec.parse({"k0": "pixels! h", "b0": "h", "k1": "h classes!", "b1": "classes!"})
SIZES = {"pixels": 4, "h": 5, "classes": 3}
NETWORKS = {
    "deep_sets": DeepSetsConfig((6, 6)),
    "pooled_deep_sets": PooledDeepSetsConfig((6, 6)),
    "nfn": NFNConfig((6, 6)),
    "unf": UNFConfig((6, 6)),
    "deep_unf": UNFConfig((6,), equivariant=(4, 4)),
    "shared": UNFConfig((6, 6), share="role"),
    "positions": UNFConfig((6, 6), fixed="positions"),
    "folded": UNFConfig((6, 6), fixed="folded"),
    "untied": UNFConfig((6, 6), fixed="untied"),
}


def features(spec=MLP, sizes=SIZES, channels=NUM_WEIGHT_CHANNELS):
    return {
        path: jax.random.normal(
            jax.random.fold_in(jax.random.key(0), i), (*(sizes[f.name] for f in spec.factors(path)), channels)
        )
        for i, path in enumerate(spec.paths)
    }


def act(spec, x, element):
    return WeightSpec.parse({p: f"{spec.notation(p)} channels!" for p in spec.paths}).permute(x, element)


def first(out):
    """The first output of each leaf."""
    return {path: y[0] for path, y in out.items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_commutes_with_the_true_group(name):
    init, apply, *_ = NETWORKS[name].make(MLP, SEEN, 1, SIZES)
    theta = jax.jit(init)(jax.random.key(1))
    apply = jax.jit(apply)
    time = jnp.ones(NUM_TIME_CHANNELS)
    x = features()
    out = first(apply(theta, finished(x, time)))
    assert {path: y.shape for path, y in out.items()} == {path: y.shape[:-1] for path, y in x.items()}
    element = {"h": jnp.asarray([3, 0, 4, 1, 2])}
    moved = first(apply(theta, finished(act(MLP, x, element), time)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), moved, MLP.permute(out, element))
    # Whether the order of fixed axes is seen is what distinguishes the modes.
    fixed = {"pixels": jnp.asarray([1, 2, 3, 0])}
    relaxed = MLP.relax()
    moved = first(apply(theta, finished(act(relaxed, x, fixed), time)))
    gap = max(float(jnp.max(jnp.abs(moved[p] - relaxed.permute(out, fixed)[p]))) for p in out)
    assert gap > 1e-3 if name in ("positions", "folded", "untied") else gap < 1e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_learns_a_target(name):
    """A few steps of Adam bring an equivariant target nearer: gradients reach all of theta that matters."""
    init, apply, *_ = NETWORKS[name].make(MLP, SEEN, 1, SIZES)
    x = finished(features(), jnp.ones(NUM_TIME_CHANNELS))
    targets = {path: y[0] * 0.5 for path, y in x.channels.items()}

    @jax.jit
    def fit(theta):
        def loss(theta):
            out = first(apply(theta, x))
            return sum(jnp.mean(jnp.square(out[path] - targets[path])) for path in out)

        def step(carry, _):
            theta, state = carry
            value, grads = jax.value_and_grad(loss)(theta)
            with jax.numpy_dtype_promotion("standard"):
                updates, state = tx.update(grads, state)
            return (optax.apply_updates(theta, updates), state), value

        tx = optax.adam(1e-2)
        return jax.lax.scan(step, (theta, tx.init(theta)), length=100)[1]

    losses = fit(jax.jit(init)(jax.random.key(2)))
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_serves_params_under_64_bit_floats(name, dtype):
    """theta stays float32 and updates keep the dtype of params, also where JAX's default is 64 bits."""
    with jax.enable_x64(True):
        optimizer = LearnedMomentumConfig(network=NETWORKS[name]).make(MLP, SIZES)
        theta = jax.eval_shape(optimizer.init, jax.random.key(0))
        assert {leaf.dtype for leaf in jax.tree.leaves(theta)} == {jnp.dtype(jnp.float32)}
        params = {path: jnp.ones(x.shape[:-1], dtype) for path, x in features().items()}

        def update(theta, params):
            transform = optimizer.opt_fn(theta)
            return transform.update(params, transform.init(params), params)[0]

        updates = jax.eval_shape(update, theta, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize(
    "config",
    [
        UNFConfig((6, 5)),
        UNFConfig((6,), equivariant=(5,)),
        UNFConfig((6, 5), share="role"),
        NFNConfig((6, 5)),
        PooledDeepSetsConfig((6, 5)),
    ],
    ids=["unf", "two layers", "by role", "nfn", "pooled"],
)
def test_begins_as_a_deep_sets_and_computes_the_same(config):
    deep_sets = DeepSetsConfig((6, 5)).make(MLP, SEEN, 2)
    network = config.make(MLP, SEEN, 2, SIZES)
    theta = deep_sets.init(jax.random.key(1))
    begun = config.begin_as(theta, jax.eval_shape(network.init, jax.random.key(0)))
    assert jax.tree.structure(begun) == jax.tree.structure(network.init(jax.random.key(0)))
    x = finished(features(), jnp.ones(NUM_TIME_CHANNELS))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), network.apply(begun, x), deep_sets.apply(theta, x)
    )


def test_what_cannot_begin_as_a_deep_sets_says_why():
    theta = DeepSetsConfig((6, 5)).make(MLP, SEEN, 1).init(jax.random.key(1))
    published, narrow = UNFConfig((6, 5), terms=None), UNFConfig((6, 4))
    with pytest.raises(ValueError, match="without a shared pointwise map, terms=None"):
        published.begin_as(theta, published.make(MLP, SEEN, 1).init(jax.random.key(0)))
    with pytest.raises(ValueError, match=r"shapes \[.*\(6, 5\).*\], those of this network \[.*\(6, 4\)"):
        narrow.begin_as(theta, narrow.make(MLP, SEEN, 1).init(jax.random.key(0)))


@pytest.mark.parametrize("config", [NFNConfig(), UNFConfig(fixed="folded"), UNFConfig(fixed="untied")])
def test_sizes_are_asked_for(config):
    with pytest.raises(ValueError, match=r"pass sizes=spec.sizes\(params\)"):
        config.make(MLP, SEEN, 1)


def test_modes_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="does not go with fixed='positions'"):
        UNFConfig(share="role", fixed="positions").make(MLP, SEEN, 1)


def test_predictor_is_invariant_and_sees_more_than_means():
    predictor = invariant_predictor(MLP.relax(), unf_layer, channels=(2, 4, 4), hidden=(8,), outputs=3)
    theta = jax.jit(predictor.init)(jax.random.key(0))
    apply = jax.jit(predictor.apply)
    x = features(channels=2)
    element = MLP.relax().sample(jax.random.key(1), {p: y[..., 0] for p, y in x.items()})
    np.testing.assert_allclose(apply(theta, act(MLP.relax(), x, element)), apply(theta, x), atol=1e-5)
    assert apply(theta, x).shape == (3,)
    untied = WeightSpec.parse({"k0": "pixels g", "b0": "h", "k1": "h classes", "b1": "classes"})
    broken = act(untied, x, {"g": jnp.asarray([1, 2, 3, 4, 0])})
    assert float(jnp.max(jnp.abs(apply(theta, broken) - apply(theta, x)))) > 1e-4


def test_invariant_pooling_is_the_mean_of_each_tensor():
    x = features(channels=2)
    expected = np.concatenate([np.asarray(x[path]).reshape(-1, 2).mean(axis=0) for path in MLP.paths])
    np.testing.assert_allclose(invariant_pooling(MLP, x), expected, atol=1e-6)


def test_predictor_needs_a_layer():
    with pytest.raises(ValueError, match="at least one layer"):
        invariant_predictor(MLP.relax(), unf_layer, channels=(1,))


LARGE = WeightSpec.parse({"w0": "a a", "b0": "a", "w1": "kh! a b", "b1": "b", "w2": "(kh! b) c!"})
SHAPES = {"w0": (9, 9), "b0": (9,), "w1": (2, 9, 5), "b1": (5,), "w2": (10, 4)}


@pytest.mark.parametrize(
    ("config", "digests"),
    [
        (UNFConfig((6, 6)), 3),
        (UNFConfig((6, 6), share="role"), 3),
        (DeepSetsConfig((6, 4)), 3),
        (PooledDeepSetsConfig((6, 4)), 3),
    ],
    ids=str,
)
def test_large_leaves_are_computed_in_blocks(config, digests, monkeypatch):
    """Blocks of 12 weights: leaves of 12 and more are cut up along any axis, with and without a rest, those with diagonals as well;
    forwards, backwards and over particles."""
    network = config.make(LARGE, SEEN, 1)
    theta = network.init(jax.random.key(0))

    def tree(index):
        keys = jax.random.split(jax.random.key(index), len(SHAPES))
        return {path: jax.random.normal(key, (2, *shape)) for key, (path, shape) in zip(keys, SHAPES.items(), strict=True)}

    params, grads = tree(1), tree(2)
    momenta = jax.tree.map(lambda g: jnp.stack([g * i for i in range(6)], axis=1), grads)

    def loss(theta, params, grads, momenta):
        out = network.apply(theta, weight_features(params, grads, momenta, jnp.int32(3)))
        return sum(jnp.sum(jnp.sin(y)) for y in out.values()), out

    def particles(*args):
        return jax.vmap(jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True), in_axes=(None, 0, 0, 0))(*args)

    args = theta, params, grads, momenta
    whole = jax.jit(particles)(*args)
    monkeypatch.setattr(lopt.layers.digest, "BLOCK", 12)
    traced = jax.jit(lambda *args: particles(*args)).trace(*args)  # a new function, as the other's program is kept
    assert str(traced.jaxpr).count("scan[") == 2 * digests
    blocks = traced.lower().compile()(*args)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), blocks, whole)
