"""Shampoo: inverse roots by products, in C++ and by XLA, against eigenvalues by NumPy; its step against its definition."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.layers.kernels import ffi as native
from lopt.layers.kernels.build import find_compiler, load_kernels
from lopt.optimizers.muon import COEFFICIENTS, STEPS, scale_by_muon
from lopt.optimizers.nominals import ShampooNominal
from lopt.optimizers.shampoo import DAMPING, LARGEST, OF_KERNEL, inverse_roots, scale_by_shampoo
from lopt.symmetry.spec import WeightSpec

KERNEL = pytest.mark.skipif(find_compiler() is None, reason="there is no C++ compiler")


@pytest.fixture(autouse=True)
def nothing_is_used():
    yield
    native.use(None)


def covariance(side, rank, seed=0, batch=()):
    x = jax.random.normal(jax.random.key(seed), (*batch, rank, side))
    return jnp.swapaxes(x, -1, -2) @ x


# Sides beside those of blocks and vectors, batches, sides of many blocks; and of fewer gradients than rows.
FULL = [covariance(side, 3 * side, side) for side in (1, 2, 5, 6, 13, 33, 64, 128, 130)] + [covariance(9, 20, 1, (2, 3))]
SINGULAR = [covariance(5, 2), covariance(33, 8), covariance(130, 60)]


def by_kernel(tensors):
    native.use(load_kernels)
    assert "ffi_call" in str(jax.make_jaxpr(inverse_roots)(tensors))
    jax.clear_caches()
    found = jax.jit(inverse_roots)(tensors)
    native.use(None)
    return found


def root_by_eigenvalues(a):
    """The same polynomials of the eigenvalues, in double precision."""
    first, second, third = COEFFICIENTS
    a = np.asarray(a, np.float64)
    values, vectors = np.linalg.eigh(a / np.linalg.norm(a, axis=(-2, -1), keepdims=True))
    t, z = values + DAMPING, np.ones_like(values)
    for _ in range(STEPS):
        factor = first + second * t + third * t**2
        t, z = t * factor**2, z * factor
    return (vectors * z[..., None, :]) @ np.swapaxes(vectors, -1, -2)


@pytest.mark.parametrize("way", [pytest.param(by_kernel, marks=KERNEL), jax.jit(inverse_roots)], ids=["kernel", "xla"])
def test_roots_are_those_of_eigenvalues(way):
    """Eigenvalues of nothing, of which float32 leaves a millionth of the largest, are multiplied by up to a hundred."""
    for a, found in zip([*FULL, *SINGULAR], way([*FULL, *SINGULAR]), strict=True):
        expected = root_by_eigenvalues(a)
        near = (1e-3 if a.shape[-1] > np.linalg.matrix_rank(a).min() else 1e-4) * np.abs(expected).max()
        np.testing.assert_allclose(found, expected, atol=near)
        np.testing.assert_allclose(found, np.swapaxes(found, -1, -2), atol=near)


def test_they_are_inverse_roots():
    """Up to what Newton-Schulz leaves of a singular value: between a half and 1.3 of one."""
    for a, root in zip(FULL, inverse_roots(FULL), strict=True):
        normed = np.asarray(a) / np.linalg.norm(a, axis=(-2, -1), keepdims=True)
        values = np.linalg.eigvalsh(np.asarray(root) @ normed @ np.asarray(root))
        large = np.linalg.eigvalsh(normed) > 10 * DAMPING
        assert np.all((values[large] > 0.4) & (values[large] < 1.6))


@KERNEL
@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_what_is_not_finite_is_not_masked(value):
    """Nor does it reach other matrices; of zeros the root is a multiple of the identity."""
    tensors = [jnp.stack([covariance(6, 8), jnp.full((6, 6), value)]), covariance(4, 9)]
    for found, expected in zip(by_kernel(tensors), inverse_roots(tensors), strict=True):
        np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        assert np.isfinite(found[0]).all()


@KERNEL
def test_large_and_empty_ones_are_left_to_xla():
    tensors = [covariance(OF_KERNEL, 4), covariance(OF_KERNEL + 1, 4), jnp.zeros((0, 3, 3)), jnp.zeros((0, 0))]
    native.use(load_kernels)
    taken = re.findall(r"ffi_call\[(?:[^\[\]]|\[[^\]]*\])*\] ([a-z ]+)", str(jax.make_jaxpr(inverse_roots)(tensors)))
    assert [len(names.split()) for names in taken] == [1]
    assert [x.shape for x in inverse_roots(tensors)] == [x.shape for x in tensors]


@KERNEL
def test_threads_change_nothing(monkeypatch):
    tensors, found = [covariance(100, 120, 0, (6,)), covariance(40, 50)], []
    for threads in (1, 2):
        monkeypatch.setattr(native, "available_cores", lambda threads=threads: threads * jax.local_device_count())
        found.append(by_kernel(tensors))
    jax.tree.map(np.testing.assert_array_equal, *found)


@KERNEL
@pytest.mark.slow
@pytest.mark.usefixtures("architecture")
def test_other_processors():
    for found, expected in zip(by_kernel(FULL), inverse_roots(FULL), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def from_identity(covariance, decay, steps):
    """An average that began at zero, as if at its own mean eigenvalue."""
    covariance, left = np.asarray(covariance, np.float64), decay**steps
    mean = np.trace(covariance, axis1=-2, axis2=-1) / covariance.shape[-1]
    return covariance + left / (1 - left) * mean[..., None, None] * np.eye(covariance.shape[-1])


SHAPES = {"a": (6, 5), "b": (5,), "c": (3, 3, 2, 4), "stack": (2, 4, 3), "s": ()}


def gradients(seed, shapes=SHAPES):
    return {path: jax.random.normal(jax.random.key(97 * seed + i), shape) for i, (path, shape) in enumerate(shapes.items())}


def run(tx, grads):
    """The steps after each of some gradients, and the state."""
    state, steps, update = tx.init(grads[0]), [], jax.jit(tx.update)
    for g in grads:
        step, state = update(g, state)
        steps.append(step)
    return steps, state


def test_the_step_is_momentum_between_inverse_roots():
    """By NumPy; vectors and scalars have NAdam's step, as with Muon."""
    grads = [gradients(i) for i in range(12)]
    steps, state = run(scale_by_shampoo(0.8, b3=0.9), grads)
    muon, _ = run(scale_by_muon(0.8), grads)
    for path, matrices in {"a": (1, 6, 5), "c": (1, 18, 4), "stack": (2, 4, 3)}.items():
        of_path = [np.asarray(g[path], np.float64).reshape(matrices) for g in grads]
        mean, left, right = 0.0, 0.0, 0.0
        for g in of_path:
            turned = np.swapaxes(g, -1, -2)
            mean, left, right = 0.8 * mean + 0.2 * g, 0.9 * left + 0.1 * g @ turned, 0.9 * right + 0.1 * turned @ g
        nesterov = 0.8 / (1 - 0.8**13) * mean + 0.2 / (1 - 0.8**12) * of_path[-1]
        roots = [root_by_eigenvalues(from_identity(kept, 0.9, 12)) for kept in (left, right)]
        x = roots[0] @ nesterov @ roots[1]
        (rows, columns), found = matrices[1:], np.asarray(steps[-1][path]).reshape(matrices)
        x *= (min(rows, columns) * max(1, columns / rows)) ** 0.5 / np.linalg.norm(x, axis=(-2, -1), keepdims=True)
        np.testing.assert_allclose(found, x, rtol=2e-3, atol=2e-3 * np.abs(x).max(), err_msg=path)
        np.testing.assert_allclose(np.asarray(state.left[path]).reshape(left.shape), left, rtol=1e-4, atol=1e-4)
    for path in ("b", "s"):
        np.testing.assert_allclose(steps[-1][path], muon[-1][path], rtol=1e-5)


def test_it_begins_as_momentum():
    """A covariance of one gradient says nothing of others: the first step is nearly the gradient, where Muon's is orthogonal."""
    g = gradients(0)["a"]
    step = np.asarray(run(scale_by_shampoo(), [{"a": g}])[0][0]["a"])
    assert np.sum(step * g) / np.linalg.norm(step) / np.linalg.norm(g) > 0.97


def test_it_turns_with_its_inputs_and_outputs_and_knows_no_scale():
    """G -> c Q G P with orthogonal Q and P: the step is Q step P, as of a gradient in other coordinates."""
    q, p = (np.linalg.qr(np.random.default_rng(i).normal(size=(n, n)))[0].astype(np.float32) for i, n in ((0, 6), (1, 5)))
    plain = [{"a": gradients(i)["a"]} for i in range(20)]
    expected = q @ np.asarray(run(scale_by_shampoo(), plain)[0][-1]["a"]) @ p
    for scale in (1e-16, 1e-12, 1e-6, 1.0, 1e6, 1e15):
        found = run(scale_by_shampoo(), [{"a": scale * (q @ g["a"] @ p)} for g in plain])[0][-1]["a"]
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)


def test_the_step_of_permuted_heads_is_the_permuted_step():
    spec = WeightSpec.parse({"query": "a heads q@heads", "experts": "e a b", "linear": "b a"})
    sizes = {"a": 5, "b": 4, "e": 2, "heads": 3, "q": 2}
    shapes = {path: tuple(sizes[axis[0].name] for axis in axes) for path, axes in spec.leaves}
    grads = [gradients(i, shapes) for i in range(8)]
    moved = spec.sample(jax.random.key(1), grads[0])
    last = lambda grads, spec: run(scale_by_shampoo(spec=spec), grads)[0][-1]  # noqa: E731
    expected = spec.permute(last(grads, spec), moved)
    found = last([spec.permute(g, moved) for g in grads], spec)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3), found, expected)
    blind = last(grads, None)["query"]
    assert np.abs(np.asarray(last(grads, spec)["query"]) - blind).max() > 0.05, "without the spec it is another step"


def test_matrices_that_are_too_large_have_muons_step():
    shapes = {"large": (LARGEST + 1, 3), "small": (5, 3)}
    grads = [gradients(i, shapes) for i in range(3)]
    found, state = run(scale_by_shampoo(), grads)
    muon, _ = run(scale_by_muon(), grads)
    np.testing.assert_array_equal(found[-1]["large"], muon[-1]["large"])
    assert jnp.shape(state.left["large"]) == ()
    assert state.left["small"].shape == (5, 5)
    assert np.abs(np.asarray(found[-1]["small"]) - muon[-1]["small"]).max() > 0.05


def test_roots_are_kept_from_one_computation_to_the_next():
    """In the first `every` steps each has its own; then those of the last step that is divided by it."""
    grads = [gradients(i) for i in range(9)]
    always, rarely = (run(scale_by_shampoo(every=every), grads) for every in (1, 4))
    same = [bool(np.allclose(a["a"], b["a"], atol=1e-6)) for a, b in zip(always[0], rarely[0], strict=True)]
    assert same == [True] * 5 + [False] * 3 + [True]
    root = root_by_eigenvalues(from_identity(rarely[1].left["a"], 0.95, 9))
    np.testing.assert_allclose(rarely[1].left_root["a"], root, rtol=1e-3, atol=1e-3)
    assert jnp.shape(always[1].left_root["a"]) == ()
    with pytest.raises(ValueError, match="every must be a positive number of steps, got 0"):
        ShampooNominal(every=0).init()


def test_a_batch_computes_roots_when_one_of_it_needs_them():
    """Each has those of its own steps all the same; nested batches too."""
    grads = [gradients(i) for i in range(9)]
    steps, _ = run(scale_by_shampoo(every=4), grads)
    tx = scale_by_shampoo(every=4)

    def run_from(tx, some):
        state = tx.init(grads[0])
        for g in some:
            state = tx.update(g, state)[1]
        return state

    counts = (2, 5, 8)
    states = jax.tree.map(lambda *x: jnp.stack(x), *(run_from(tx, grads[:count]) for count in counts))
    batch = jax.tree.map(lambda *x: jnp.stack(x), *(grads[count] for count in counts))
    nested = jax.tree.map(lambda x: x[None], (batch, states))
    function = jax.vmap(jax.vmap(lambda g, state: tx.update(g, state)[0]["a"]))
    assert "cond[" in str(jax.make_jaxpr(function)(*nested)), "a batch does not choose after both were computed"
    found = jax.jit(function)(*nested)[0]
    for x, count in zip(found, counts, strict=True):
        np.testing.assert_allclose(x, steps[count]["a"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("native_kernel", [False, pytest.param(True, marks=KERNEL)])
def test_derivatives_and_batches(every, native_kernel):
    """By the decays, inside of a scan, one after another under vmap: as by finite differences."""
    grads = jax.tree.map(lambda *x: jnp.stack(x), *({"a": gradients(i)["a"]} for i in range(5)))
    native.use(load_kernels if native_kernel else None)
    jax.clear_caches()

    def loss(logit):
        tx = scale_by_shampoo(jax.nn.sigmoid(logit), b3=jax.nn.sigmoid(logit + 0.5), every=every)
        _, steps = jax.lax.scan(lambda state, g: tx.update(g, state)[::-1], tx.init({"a": jnp.zeros((6, 5))}), grads)
        return jnp.sum(jnp.sin(3 * steps["a"]))

    at = jnp.array([0.2, 1.0])
    slopes = jax.jit(jax.vmap(jax.grad(loss)))(at)
    apart = jax.jit(jax.vmap(lambda x: (loss(x + 1e-2) - loss(x - 1e-2)) / 2e-2))(at)
    np.testing.assert_allclose(slopes, apart, rtol=0.03, atol=0.03)
    np.testing.assert_allclose(jax.jit(jax.vmap(loss))(at), [jax.jit(loss)(x) for x in at], rtol=1e-3)


def test_the_nominal_has_its_decays_in_theta():
    nominal = ShampooNominal(beta=0.8, b3=0.7, lengthen=10.0)
    theta = nominal.init()
    assert {name: round(float(x), 4) for name, x in nominal.scalars(theta).items()} == {
        "beta": 0.8,
        "b1": 0.9,
        "b2": 0.999,
        "b3": 0.7,
    }
    grads = [gradients(i) for i in range(3)]
    found = run(nominal.make(theta, WeightSpec(())), grads)[0]
    expected = run(scale_by_shampoo(0.8, b3=0.7, lengthen=10.0), grads)[0]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3), found, expected)
