"""One pass over the weights by the kernel in C++ against the features and the network as XLA computes them."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.features.base import Accumulator, Context, Kind
from lopt.features.factored import FactoredMomenta, FactoredMoments
from lopt.features.momenta import Momenta
from lopt.features.presets import AdafactorFeatures, Celo2Features, CustomFeatures, PaperFeatures
from lopt.features.second_moments import GradientOverRoot, InverseRoot
from lopt.features.time import LossTrend
from lopt.features.weights import Gradient, TensorSize, Value
from lopt.layers.digest import Needs
from lopt.layers.kernels import ffi as native
from lopt.layers.kernels.build import find_compiler, load_kernels
from lopt.layers.step import is_stepped
from lopt.networks.update import DeepSetsConfig, PooledDeepSetsConfig, UNFConfig, update_and_apply
from lopt.optimizers.config import LearnedOptimizerConfig
from lopt.optimizers.momentum import MomentumRule, SGDMRule
from lopt.symmetry.spec import WeightSpec

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="there is no C++ compiler")

DEEP_SETS = DeepSetsConfig((7, 6))
# Of every rank, and empty; with axes of one index, equal axes, rows within a tile and beyond, several parts.
FEW = [(), (5,), (64, 37), (0, 4), (3, 2, 9, 10)]
SHAPES = [*FEW, (1,), (2000,), (1, 1), (7, 3), (3, 200), (200, 3), (60, 60), (4, 3, 50), (50, 2, 4), (5, 40, 30), (2, 2, 60, 70)]


@pytest.fixture(scope="module")
def loaded():
    return load_kernels()


@pytest.fixture(autouse=True)
def nothing_is_used():
    yield
    native.use(None)


def weights_of(shapes):
    """Params by name and a spec in which nothing is shared."""
    params = {f"w{i}": jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)}
    axes = {name: " ".join(f"{name}_{axis}" for axis in range(w.ndim)) for name, w in params.items()}
    return params, WeightSpec.parse(axes)


def gradient_of(w, step):
    return 0.3 * jnp.cos(7 * w + step) * jnp.exp(w)


def trained(features, network, spec, params, gradient=gradient_of, steps=3):
    """f of every step, and the state after them."""
    seen = features.make()
    net = network.make(spec, seen, 2)

    @jax.jit
    def run(theta):
        def one(state, count):
            grads = jax.tree.map(lambda w: gradient(w, count.astype(jnp.float32)), params)
            context = Context(count, jnp.float32(0.5), jnp.float32(steps))
            out, state = update_and_apply(seen, net, theta, grads, state, params, context)
            return state, out

        state, out = jax.lax.scan(one, seen.init(params), jnp.arange(steps))
        return out, state

    return run, net.init(jax.random.key(9))


def both(kernel, *args, **options):
    """What XLA computes, and what the kernel does."""
    found = []
    for used in (None, kernel):
        native.use(None if used is None else lambda used=used: used)
        run, theta = trained(*args, **options)
        assert ("ffi_call" in str(jax.make_jaxpr(run)(theta))) == (used is not None)
        found.append(run(theta))
    return found


def close(found, expected, rtol=1e-5):
    """To so much of the largest value of an array: sums are in another order."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(found), strict=True)
    for (path, a), b in pairs:
        largest = np.max(np.abs(a), initial=0.0, where=np.isfinite(a))
        np.testing.assert_allclose(b, a, rtol=rtol, atol=rtol * largest, err_msg=jax.tree_util.keystr(path))


FEATURES = {
    "paper": PaperFeatures(),
    "adafactor": AdafactorFeatures(bias_correction=True),
    "celo2": Celo2Features(),
    "custom": CustomFeatures(
        parts=(TensorSize(), InverseRoot(0.9, True), LossTrend(), Value(), Momenta((0.5,)), Gradient(0.2)), clip=2.0
    ),
}
FACTORED = CustomFeatures(
    parts=(Value(), Gradient(0.2), GradientOverRoot(0.9), FactoredMomenta((0.9,), momenta=(0.5,)), FactoredMoments((0.9,)))
)  # few, so that tests compile soon


@pytest.mark.parametrize(
    "shapes", [FEW, pytest.param(SHAPES, marks=[pytest.mark.slow, pytest.mark.compiles])], ids=["few", "all"]
)
@pytest.mark.parametrize("name", FEATURES)
def test_every_rank(name, shapes, loaded):
    params, spec = weights_of(shapes)
    expected, found = both(loaded, FEATURES[name], DEEP_SETS, spec, params)
    close(found, expected)


@pytest.mark.parametrize(
    "network",
    [UNFConfig((7, 6)), UNFConfig((7, 6), share="role"), UNFConfig((7, 6), equivariant=(3,)), PooledDeepSetsConfig((7, 6))],
    ids=["unf", "role", "two layers", "pooled"],
)
def test_networks_that_couple_weights(network, loaded):
    """A recurrent matrix needs diagonals, which XLA takes of what the kernel computes; an axis may be two factors in one."""
    spec = WeightSpec.parse({"w": "inputs! units", "r": "units units", "b": "units", "o": "(units heads!) out"})
    shapes = {"w": (3, 20), "r": (20, 20), "b": (20,), "o": (100, 30)}
    params = {path: jax.random.normal(jax.random.key(i), shape) for i, (path, shape) in enumerate(shapes.items())}
    expected, found = both(loaded, FACTORED, network, spec, params)
    close(found, expected)
    native.use(lambda: loaded)
    made = network.make(spec, FACTORED.make(), 2)
    assert made.computes(made.init(jax.random.key(0)), shapes) == set(shapes), "by the kernel"


@pytest.mark.parametrize("network", [UNFConfig((7, 6)), UNFConfig((7, 6), share="role")], ids=["unf", "role"])
def test_a_convolution_whose_matrices_have_scales_of_their_own(network, loaded):
    """Celo2's scales; the sums that the last layer needs are over all of them, and of windows too."""
    spec = WeightSpec.parse(
        {"w": "y! x! inputs! units", "p": "1 1 units (units2 k!)", "o": "y2! x2! units2 out", "few": "y3! x3! inputs! out"}
    )
    shapes = {"w": (3, 3, 10, 20), "p": (1, 1, 20, 30), "o": (2, 2, 10, 50), "few": (3, 3, 10, 50)}
    params = {path: jax.random.normal(jax.random.key(i), shape) for i, (path, shape) in enumerate(shapes.items())}
    params = {path: w * (1 + jnp.arange(w.shape[0], dtype=jnp.float32).reshape(-1, 1, 1, 1)) for path, w in params.items()}
    expected, found = both(loaded, Celo2Features(), network, spec, params)
    close(found, expected)
    declared = Celo2Features().make().channels
    needs = Needs((3, 3, 10, 20), jnp.zeros((6, 2)), (0, 1, 2, 3))
    native.use(lambda: loaded)
    assert is_stepped((3, 3, 10, 20), needs, declared)
    assert not is_stepped((3, 3, 2, 20), needs, declared), "a window is factored"
    assert not is_stepped((30, 3, 10, 20), Needs((30, 3, 10, 20), needs.matrix, ()), declared), "tiles go over several matrices"


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_what_is_not_finite_is_not_masked(value, loaded):
    params, spec = weights_of([(5,), (7, 60)])
    spoilt = {name: w.at[(2,) * w.ndim].set(value) for name, w in params.items()}

    def gradient(w, step):
        return jnp.where(jnp.isfinite(w), jnp.cos(w + step), w)

    expected, found = both(loaded, FACTORED, DEEP_SETS, spec, spoilt, gradient, steps=1)
    assert not all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(expected[0]))
    close(found, expected)


def test_state_in_bfloat16(loaded):
    params, spec = weights_of([(64, 32), (5,)])
    features = dataclasses.replace(FACTORED, state_dtype="bfloat16")
    (out, state), (found_out, found_state) = both(loaded, features, DEEP_SETS, spec, params, steps=1)
    close(found_out, out)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(found_state), strict=True):
        assert a.dtype == b.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), rtol=2**-7)  # one may be rounded up, one down


def test_derivatives_and_batches(loaded):
    """Forwards, backwards, one after another under vmap: by theta, weights and gradients."""
    params, spec = weights_of([(4, 6), (3,)])
    seen = FACTORED.make()
    net = DEEP_SETS.make(spec, seen, 1)
    thetas = jax.vmap(net.init)(jax.random.split(jax.random.key(1), 2))

    def loss(theta, params):
        grads = jax.tree.map(jnp.sin, params)
        out, state = update_and_apply(seen, net, theta, grads, seen.init(params), params, Context(jnp.int32(0)))
        return sum(jnp.sum(jnp.sin(x)) for x in out.values()) + sum(jnp.sum(jnp.cos(x)) for x in jax.tree.leaves(state))

    def outcome():
        values, gradients = jax.jit(jax.vmap(jax.value_and_grad(loss, (0, 1)), in_axes=(0, None)))(thetas, params)
        plain = jax.jit(jax.vmap(loss, in_axes=(0, None)))(thetas, params)
        return values, plain, gradients

    expected = outcome()
    native.use(lambda: loaded)
    jax.clear_caches()
    assert "ffi_call" in str(jax.make_jaxpr(loss)(jax.tree.map(lambda x: x[0], thetas), params))
    close(outcome(), expected, 1e-4)


def test_threads_change_nothing(loaded, monkeypatch):
    """Parts of a tensor are summed in their order, whichever thread has computed them."""
    params, spec = weights_of([(300, 20), (9001,)])
    native.use(lambda: loaded)
    found = []
    for threads in (1, 2, 2):
        monkeypatch.setattr(native, "available_cores", lambda threads=threads: threads * jax.local_device_count())
        run, theta = trained(FEATURES["celo2"], UNFConfig((7, 6)), spec, params)
        assert re.search(rf"threads\W+(np\.int64\()?{threads}\b", str(jax.make_jaxpr(run)(theta)))
        found.append(run(theta))
    for other in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, found[0], other)


@dataclasses.dataclass(frozen=True)
class Own(Kind):
    """Somebody's kind, which only Python knows."""

    def channels(self, normal):
        return (normal,)

    def per_weight(self, leaf):
        return (jnp.sign(leaf.gradient),)


@dataclasses.dataclass(frozen=True)
class OwnMemory(Kind):
    """Somebody's accumulator, read per tensor."""

    def accumulators(self):
        return {"last": Accumulator(lambda w: {"g": jnp.zeros_like(w)}, lambda old, g: {"g": g})}

    def num_tensor_channels(self):
        return 1

    def per_tensor(self, leaf):
        return jnp.mean(leaf.kept["last"]["g"])[None]


@pytest.mark.parametrize(
    ("kind", "reason"), [(Own(), "Own does not say forms()"), (OwnMemory(), "OwnMemory has channels per tensor of what it keeps")]
)
def test_kinds_of_ones_own_are_left_to_xla(kind, reason, loaded):
    features = CustomFeatures(parts=(Value(), kind)).make()
    assert features.left_to_xla == reason
    assert CustomFeatures().make().left_to_xla == ""
    params, spec = weights_of([(4, 6), (3,)])
    expected, found = both(loaded, CustomFeatures(parts=(Value(), kind)), DEEP_SETS, spec, params)
    close(found, expected)


@pytest.mark.parametrize(
    ("network", "features", "reason"),
    [
        (DEEP_SETS, Celo2Features(), ""),
        (UNFConfig((7, 6), equivariant=(3,)), Celo2Features(), ""),
        (PooledDeepSetsConfig((7, 6)), PaperFeatures(), ""),
        (
            UNFConfig((7, 6), fixed="positions"),
            PaperFeatures(),
            "the last layer of UNFConfig needs all features of all weights at once",
        ),
        (DEEP_SETS, CustomFeatures(parts=(Value(), Own())), "Own does not say forms()"),
        (None, None, ""),
    ],
    ids=str,
)
def test_what_is_left_to_xla_is_said(network, features, reason):
    """By the environment of a run, once."""
    _, spec = weights_of([(4, 6), (3,)])
    rule = SGDMRule() if network is None else MomentumRule()
    assert LearnedOptimizerConfig(rule, features, network).left_to_xla(spec) == reason


@pytest.mark.slow
@pytest.mark.usefixtures("architecture")
def test_other_processors():
    params, spec = weights_of(SHAPES)
    expected, found = both(load_kernels(), FEATURES["celo2"], DEEP_SETS, spec, params)
    close(found, expected)
