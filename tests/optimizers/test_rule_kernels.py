"""Muon's momenta and the directions of all tensors by the kernels in C++, against NumPy in double precision and against XLA."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.features.base import Context
from lopt.layers.kernels import ffi as native
from lopt.layers.kernels.build import find_compiler, load_kernels
from lopt.optimizers.direction import EPS, DirectionRule
from lopt.optimizers.muon import scale_by_muon
from lopt.optimizers.nominals import MuonNominal
from lopt.symmetry import WeightSpec

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="there is no C++ compiler")

# Every rank, sizes beside those of vectors, one that two threads share; empty ones.
SHAPES = {
    "scalar": (),
    "one": (1,),
    "vector": (37,),
    "matrix": (5, 7),
    "stack": (3, 4, 6),
    "conv": (3, 3, 2, 8),
    "deep": (2, 3, 2, 2, 5),
    "large": (300, 130),
    "none": (0, 4),
}
RULES = {
    "gated": DirectionRule(MuonNominal(), gated=True, over="matrix", scale="inputs", vectors=2.0, nominal_weight=1.5),
    "plain": DirectionRule(MuonNominal(), nominal_weight=0.5),
}


@pytest.fixture(autouse=True)
def nothing_is_used():
    yield
    native.use(None)


def draw(seed, shapes=SHAPES, leading=()):
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {name: jax.random.normal(key, (*leading, *shape)) for key, (name, shape) in zip(keys, shapes.items(), strict=True)}


def by_both(function, *args):
    """What XLA makes of a function, and what the kernels do; they are asked whether they were used."""
    jax.clear_caches()
    expected = jax.jit(function)(*args)
    native.use(load_kernels)
    jax.clear_caches()
    assert "ffi_call" in str(jax.make_jaxpr(function)(*args))
    found = jax.jit(function)(*args)
    native.use(None)
    return expected, found


def assert_close(expected, found, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), expected, found)


def muon_without_matrices(grads, mean, square, decays, count, eps):
    """Nesterov's step of NAdam in double precision, as Dozat has it."""
    b1, b2 = decays
    t = count + 1
    mean, square = b1 * mean + (1 - b1) * grads, b2 * square + (1 - b2) * grads**2
    ahead = b1 * mean / (1 - b1 ** (t + 1)) + (1 - b1) * grads / (1 - b1**t)
    return mean, square, ahead / (np.sqrt(square / (1 - b2**t)) + eps)


def test_vectors_move_as_in_double_precision():
    tx, grads, (mean, square) = scale_by_muon(b1=0.8, b2=0.97), draw(0), (draw(1), jax.tree.map(jnp.square, draw(2)))
    state = tx.init(grads)._replace(count=jnp.int32(4), mu=mean)
    state = state._replace(nu=jax.tree.map(lambda old, v: v if old.ndim == v.ndim else old, state.nu, square))
    native.use(load_kernels)
    steps, after = jax.jit(tx.update)(grads, state)
    for name in ("scalar", "one", "vector"):
        given = [np.asarray(tree[name], np.float64) for tree in (grads, mean, square)]
        expected = muon_without_matrices(*given, (0.8, 0.97), 4, 1e-8)
        assert_close(expected, (after.mu[name], after.nu[name], steps[name]))


def test_muon_is_that_of_xla():
    """Also what is kept of empty tensors and of matrices."""
    tx = scale_by_muon()
    state = tx.init(draw(0))

    def three_steps(grads, state):
        for i in range(3):
            steps, state = tx.update(jax.tree.map(lambda g, i=i: g * (1.0 + i), grads), state)
        return steps, state

    assert_close(*by_both(three_steps, draw(0), state), rtol=1e-4, atol=1e-5)


def directions(rule, spec=None):
    def function(theta, f, n):
        return rule.direction(theta, f, n, Context(jnp.int32(0), spec=spec or WeightSpec(())))

    return function


def given(rule, seed=0, leading=()):
    f = draw(seed, {name: (rule.outputs, *shape) for name, shape in SHAPES.items()}, leading)
    return f, draw(seed + 1, leading=leading)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_directions_are_those_of_xla(rule):
    """f large enough that its exponents are cut; nominal steps of other sizes; one that is zero."""
    f, n = given(rule)
    n |= {"vector": 1e-4 * n["vector"], "conv": 0 * n["conv"], "large": 1e3 * n["large"]}
    f["stack"] = 10 * f["stack"]
    expected, found = by_both(directions(rule), rule.init(), f, n)
    assert_close(expected, found)
    assert not np.any(found["conv"]), "it has no direction yet"
    sizes = {name: np.sqrt(np.mean(np.square(found[name]))) for name in ("vector", "matrix", "large")}
    inputs = {"vector": 1, "matrix": 5, "large": 300} if rule.scale == "inputs" else dict.fromkeys(sizes, 1)
    learned = {"vector": rule.vectors}
    for name, size in sizes.items():
        assert size == pytest.approx(learned.get(name, 1) * inputs[name] ** -0.5, rel=1e-4)


def test_matrices_that_do_not_lie_apart_are_left_to_xla():
    """Of a weight with outputs first a stack is behind its matrices."""
    rule, spec = RULES["gated"], WeightSpec.parse({"apart": "layers! in out", "within": "in layers! out"})
    shapes = {"apart": (3, 4, 6), "within": (4, 3, 6)}
    f, n = draw(0, {name: (2, *shape) for name, shape in shapes.items()}), draw(1, shapes)
    expected, found = by_both(directions(rule, spec), rule.init(), f, n)
    assert_close(expected, found)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_tensor(value):
    rule = RULES["gated"]
    f, n = given(rule)
    n["large"], f["vector"] = n["large"].at[299, 129].set(value), f["vector"].at[1, 3].set(value)
    expected, found = by_both(directions(rule), rule.init(), f, n)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.isfinite(a), np.isfinite(b)), expected, found)
    assert_close(expected, found)
    assert np.all(np.isfinite(found["matrix"]))
    assert not np.all(np.isfinite(found["large"]))


def test_members_of_a_batch_have_their_own_scalars_and_derivatives():
    """Under vmap of vmap, inside of a scan; forwards and backwards."""
    rule, tx = RULES["gated"], scale_by_muon(0.9)
    f, n = given(rule, leading=(2, 3))
    theta = jax.tree.map(lambda x: x + 0.02 * jnp.arange(6.0).reshape(2, 3), rule.init())

    def loss(theta, f, n):
        def step(state, _):
            steps, state = tx.update(n, state)
            found = directions(rule)(theta, f, steps)
            return state, sum(jnp.sum(jnp.sin(x)) for x in found.values())

        return jnp.sum(jax.lax.scan(step, tx.init(n), None, length=2)[1])

    assert_close(*by_both(jax.vmap(jax.vmap(loss)), theta, f, n), rtol=1e-4, atol=1e-3)
    jax.clear_caches()
    expected = jax.jit(jax.vmap(jax.vmap(jax.grad(loss))))(theta, f, n)
    native.use(load_kernels)
    jax.clear_caches()
    assert_close(expected, jax.jit(jax.vmap(jax.vmap(jax.grad(loss))))(theta, f, n), rtol=1e-3, atol=1e-3)


def test_threads_change_nothing(monkeypatch):
    rule, tx, found = RULES["gated"], scale_by_muon(), []
    f, n = given(rule)

    def both(f, n):
        steps, state = tx.update(n, tx.init(n))
        return directions(rule)(rule.init(), f, steps), state

    native.use(load_kernels)
    for threads in (1, 2):
        monkeypatch.setattr(native, "available_cores", lambda threads=threads: threads * jax.local_device_count())
        jax.clear_caches()
        found.append(jax.jit(both)(f, n))
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_of_many_tensors_small_ones_do_not_move_in_place():
    """What XLA is told to do in place it looks at pair by pair."""
    tx, many = scale_by_muon(), {f"{i}": jnp.ones(3) for i in range(40)} | {"large": jnp.ones(1 << 16)}
    native.use(load_kernels)
    in_place = re.compile(r"input_output_aliases=\((.*)\)")
    said = in_place.search(str(jax.make_jaxpr(tx.update)(many, tx.init(many))))
    assert said
    assert said[1] == "(122, 120), (123, 121)", "mean and mean square of the large one"
    few = {"w": jnp.ones(3)}
    said = in_place.search(str(jax.make_jaxpr(tx.update)(few, tx.init(few))))
    assert said
    assert said[1] == "(2, 0), (3, 1)"


@pytest.mark.slow
@pytest.mark.usefixtures("architecture")
def test_other_processors():
    for rule in RULES.values():
        assert_close(*by_both(directions(rule), rule.init(), *given(rule)))


def test_the_root_mean_square_has_the_eps_of_the_rule():
    """A nominal step as small as EPS: XLA's and the kernel's guard against zero are one."""
    rule = RULES["plain"]
    f, n = given(rule)
    f, n = jax.tree.map(lambda x: 0 * x, f), jax.tree.map(lambda x: EPS * x, n)
    assert_close(*by_both(directions(rule), rule.init(), f, n))
