"""Orthogonalised momentum: Newton-Schulz of all matrices of a shape at once, and Muon made of it.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); coefficients, Nesterov momentum, bias correction and
the scale for shapes are those of `optax.contrib.muon`, of which this is the batched form.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lopt.layers.kernels import ffi as native
from lopt.symmetry.spec import PyTree

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
EPS = 1e-8
IN_CACHE = 128 * 128  # entries of the largest matrices that the kernel takes: four such lie in a core's cache


def newton_schulz(tensors: Sequence[jax.Array], steps: int = STEPS) -> list[jax.Array]:
    """Tensors whose last two axes are made nearly orthogonal: their singular values come to lie around one.

    X <- X / |X|, then `steps` times X <- a X + (b A + c A A) X with A = X X^T. Where the process has the kernel, small matrices go
    through it, all in one call; of the others, those of one shape, up to transposition, are one batched product.

    Args:
      tensors: of rank 2 or more, float32; leading axes are a batch of matrices.
      steps: how often; 5 as everywhere.

    Returns:
      Tensors of the same shapes.

    Example:
      >>> x = jax.random.normal(jax.random.key(0), (3, 8))
      >>> bool(jnp.all(jnp.abs(jnp.linalg.svd(newton_schulz([x])[0])[1] - 1) < 0.5))
      True
    """
    with jax.named_scope("newton_schulz"):
        small = [i for i, x in enumerate(tensors) if x.shape[-2] * x.shape[-1] <= IN_CACHE and native.is_computed([x])]
        found = dict(zip(small, _by_kernel(steps, [tensors[i] for i in small]), strict=True)) if small else {}
        others = [i for i in range(len(tensors)) if i not in found]
        found |= dict(zip(others, _by_xla(steps, [tensors[i] for i in others]), strict=True))
    return [found[i] for i in range(len(tensors))]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _by_kernel(steps: int, tensors: list[jax.Array]) -> list[jax.Array]:
    return native.newton_schulz_call(tensors, steps, (*COEFFICIENTS, EPS))


@_by_kernel.defjvp
def _by_kernel_jvp(steps: int, primals: Any, tangents: Any) -> Any:
    return jax.jvp(partial(_by_xla, steps), primals, tangents)


def _by_xla(steps: int, tensors: Sequence[jax.Array]) -> list[jax.Array]:
    """Matrices of one shape, up to transposition, at once."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, x in enumerate(tensors):
        rows, columns = sorted(x.shape[-2:])
        groups.setdefault((rows, columns), []).append(i)
    found: dict[int, jax.Array] = {}
    for (rows, columns), members in groups.items():
        wide = [tensors[i] if tensors[i].shape[-2] <= tensors[i].shape[-1] else jnp.swapaxes(tensors[i], -1, -2) for i in members]
        flat = [jnp.reshape(x, (-1, rows, columns)) if x.size else jnp.zeros((0, rows, columns), x.dtype) for x in wide]
        y = _iterate(flat[0] if len(flat) == 1 else jnp.concatenate(flat), steps)
        start = 0
        for i, x, part in zip(members, wide, flat, strict=True):
            own = jnp.reshape(y[start : start + len(part)], x.shape)
            found[i] = own if tensors[i].shape[-2] <= tensors[i].shape[-1] else jnp.swapaxes(own, -1, -2)
            start += len(part)
    return [found[i] for i in range(len(tensors))]


def _iterate(x: jax.Array, steps: int) -> jax.Array:
    a, b, c = COEFFICIENTS
    x = x / (jnp.sqrt(jnp.sum(jnp.square(x), axis=(-2, -1), keepdims=True)) + EPS)
    for _ in range(steps):
        squares = x @ jnp.swapaxes(x, -1, -2)
        x = a * x + (b * squares + c * squares @ squares) @ x
    return x


LARGEST_WINDOW = 11  # of a convolution, as AlexNet's


def has_window(shape: Sequence[int]) -> bool:
    """Whether a tensor is the kernel of a convolution in two or more dimensions: axes before the last two are alike, and small.

    Example:
      >>> [has_window(shape) for shape in ((3, 3, 8, 16), (3, 8, 16), (12, 64, 8, 8))]
      [True, False, False]
    """
    window = tuple(shape[:-2])
    return len(window) > 1 and len(set(window)) == 1 and window[0] <= LARGEST_WINDOW


def as_matrices(x: jax.Array) -> jax.Array:
    """A tensor as a batch of matrices: its last two axes, and of a convolution one matrix, of the window and the inputs to outputs."""
    return jnp.reshape(x, (math.prod(x.shape[:-1]), x.shape[-1])) if has_window(x.shape) else x


def is_matrix(x: jax.Array) -> bool:
    """Whether a tensor is orthogonalised: it has at least two axes."""
    return jnp.ndim(x) >= 2


class MuonState(NamedTuple):
    """State of `scale_by_muon`.

    Attributes:
      count: steps done, int32 [].
      mu: averages of gradients, like params, float32.
      nu: averages of squared gradients of vectors and scalars; [] where params have matrices.
    """

    count: jax.Array
    mu: PyTree
    nu: PyTree


def scale_by_muon(beta: Any = 0.95, b1: Any = 0.9, b2: Any = 0.999, eps: float = EPS) -> optax.GradientTransformation:
    """Muon for matrices, NAdam for vectors and scalars: the positive direction of `optax.contrib.muon`.

    Of a matrix R x C the direction is NS(Nesterov momentum) times sqrt(max(1, C / R)). Axes before the last two are a batch, but for
    the window of a convolution, which is a part of its inputs.

    Args:
      beta: decay of the momentum of matrices.
      b1: of vectors.
      b2: decay of the second moment of vectors.
      eps: added to its root.
    """

    def init(params: PyTree) -> MuonState:
        mu = jax.tree.map(lambda w: jnp.zeros_like(w, jnp.float32), params)
        nu = jax.tree.map(lambda w: jnp.zeros((), jnp.float32) if is_matrix(w) else jnp.zeros_like(w, jnp.float32), params)
        return MuonState(jnp.zeros((), jnp.int32), mu, nu)

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None) -> tuple[PyTree, MuonState]:
        del params
        grads, structure = jax.tree.flatten(updates)
        decays = [jnp.asarray(beta if is_matrix(g) else b1, jnp.float32) for g in grads]
        mu = [d * m + (1 - d) * g for d, m, g in zip(decays, jax.tree.leaves(state.mu), grads, strict=True)]
        second = jnp.asarray(b2, jnp.float32)
        nu = [
            v if is_matrix(g) else second * v + (1 - second) * jnp.square(g)
            for v, g in zip(jax.tree.leaves(state.nu), grads, strict=True)
        ]
        t = state.count.astype(jnp.float32) + 1
        ahead = [d * m / (1 - d ** (t + 1)) + (1 - d) * g / (1 - d**t) for d, m, g in zip(decays, mu, grads, strict=True)]
        orthogonal = iter(newton_schulz([as_matrices(x) for x in ahead if is_matrix(x)]))
        steps = [
            _scaled(next(orthogonal)).reshape(x.shape) if is_matrix(x) else x / (jnp.sqrt(v / (1 - second**t)) + eps)
            for x, v in zip(ahead, nu, strict=True)
        ]
        mu, nu, steps = (jax.tree.unflatten(structure, leaves) for leaves in (mu, nu, steps))
        return steps, MuonState(jnp.asarray(optax.safe_increment(state.count)), mu, nu)

    return optax.GradientTransformation(init, update)


def _scaled(x: jax.Array) -> jax.Array:
    rows, columns = x.shape[-2:]
    return x * max(1.0, columns / rows if rows else 1.0) ** 0.5
