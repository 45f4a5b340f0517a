"""Shampoo: momentum between the inverse roots of the covariances of gradients, of rows and of columns, by products of matrices alone.

Gupta et al., "Shampoo: Preconditioned Stochastic Tensor Optimization" (arXiv 1802.09568), with averages that decay and with the exponent
-1/2 of Morwani et al. (arXiv 2409.17791): L and R together are then an estimate of the Fisher information of the matrix, not of its root.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lopt.layers.kernels import ffi as native
from lopt.optimizers.muon import (
    COEFFICIENTS,
    EPS,
    STEPS,
    MuonState,
    Sides,
    as_matrices,
    decay_numbers,
    from_matrices,
    in_batches,
    is_matrix,
    moved,
    muon_state,
    orthogonal_steps,
    sides_of,
)
from lopt.symmetry.spec import PyTree, WeightSpec, named_leaves

OF_KERNEL = 384  # side of the largest matrices that the kernel takes: there it is still more than twice as fast as XLA's products
LARGEST = 1024  # side of the largest matrices whose covariances are kept
TINY = 1e-30  # keeps zeros zeros
DAMPING = 1e-4  # added to the eigenvalues of a covariance, in parts of its norm


def inverse_roots(tensors: Sequence[jax.Array]) -> list[jax.Array]:
    """A^-1/2, up to a factor, of symmetric matrices without negative eigenvalues.

    T begins as A / |A| + 1e-4, Z as the identity; then, five times, T <- T P^2 and Z <- P Z with P = a + b T + c T^2. Eigenvalues of T go
    where the squares of singular values go in Muon's Newton-Schulz iteration, to around one; Z^2 is by what they were multiplied.

    Args:
      tensors: [..., n, n], float32.

    Returns:
      Tensors of the same shapes.

    Example:
      >>> a = jnp.diag(jnp.array([4.0, 1.0, 0.25]))
      >>> (root,) = inverse_roots([a])
      >>> bool(jnp.all(jnp.abs(jnp.linalg.eigvalsh(root @ a @ root) / jnp.linalg.norm(a) - 1) < 0.5))
      True
    """

    def is_served(x: jax.Array) -> bool:
        return x.shape[-1] <= OF_KERNEL and native.is_computed([x])

    with jax.named_scope("inverse_roots"):
        return native.divided(tensors, is_served, _by_kernel, _by_xla)


@jax.custom_jvp
def _by_kernel(tensors: list[jax.Array]) -> list[jax.Array]:
    return native.inverse_roots_call(tensors, STEPS, (*COEFFICIENTS, TINY, DAMPING))


@_by_kernel.defjvp
def _by_kernel_jvp(primals: Any, tangents: Any) -> Any:
    return jax.jvp(_by_xla, primals, tangents)


def _by_xla(tensors: Sequence[jax.Array]) -> list[jax.Array]:
    return in_batches(tensors, _roots)


def _roots(a: jax.Array) -> jax.Array:
    identity = jnp.eye(a.shape[-1], dtype=a.dtype)[None]
    start = _unit(a) + DAMPING * identity
    first, second, third = COEFFICIENTS

    def once(_: Any, tz: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        t, z = tz
        factor = first * identity + second * t + third * t @ t
        t = t @ factor @ factor
        return (t + _turned(t)) / 2, factor @ z  # rounding alone would make it less symmetric from step to step

    # Products of fewer bits, as of accelerators, would leave eigenvalues below zero, and these grow.
    with jax.default_matmul_precision("highest"):
        return jax.lax.fori_loop(0, STEPS, once, (start, jnp.broadcast_to(identity, a.shape)))[1]


class ShampooState(NamedTuple):
    """State of `scale_by_shampoo`. Of the last four every leaf is [] where params have none of Shampoo's matrices.

    Attributes:
      muon: count, averages of gradients, of squared gradients of vectors and scalars.
      left: averages of G G^T, like params, float32 [*batch, rows, rows].
      right: of G^T G, [*batch, columns, columns].
      left_root: inverse root of the left ones when it was last computed; [] where that is at every step.
      right_root: of the right ones.
    """

    muon: MuonState
    left: PyTree
    right: PyTree
    left_root: PyTree
    right_root: PyTree


def scale_by_shampoo(
    beta: Any = 0.95,
    b1: Any = 0.9,
    b2: Any = 0.999,
    b3: Any = 0.95,
    *,
    eps: float = EPS,
    every: int = 1,
    lengthen: float | None = None,
    spec: WeightSpec | None = None,
) -> optax.GradientTransformation:
    """Shampoo for matrices, NAdam for vectors and scalars.

    Of a matrix the direction is L^-1/2 M R^-1/2, M Nesterov's momentum, as long as Muon's: the scale of a loss does not matter. Averages
    begin at the identity. Roots are as near as Muon's singular values are to one. A matrix with a side of more than 1,024 has Muon's step.

    Args:
      beta: decay of the momentum of matrices.
      b1: of vectors.
      b2: decay of the second moment of vectors.
      b3: decay of the averages L and R of G G^T and G^T G.
      eps: added to the root of second moments.
      every: steps from one computation of roots to the next; in the first `every` steps each has its own.
      lengthen: after t steps momenta average over sqrt(1 + t / lengthen) times as many gradients as at first; None: over as many.
      spec: of the weights, where it is known: what a tensor's matrices are, `sides_of` says.
    """

    def init(params: PyTree) -> ShampooState:
        def zeros(path: str, w: jax.Array, right: bool) -> jax.Array:
            sides = _sides(path, w, spec)
            if sides is None:
                return jnp.zeros((), jnp.float32)
            side = math.prod(w.shape[axis] for axis in (sides.columns if right else sides.rows))
            return jnp.zeros((*(w.shape[axis] for axis in sides.batch), side, side), jnp.float32)

        structure, named = jax.tree.structure(params), named_leaves(params)
        left, right = (jax.tree.unflatten(structure, [zeros(path, w, which) for path, w in named]) for which in (False, True))
        none = jax.tree.unflatten(structure, [jnp.zeros((), jnp.float32)] * len(named))
        return ShampooState(muon_state(params), left, right, *((left, right) if every > 1 else (none, none)))

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None) -> tuple[PyTree, ShampooState]:
        del params
        structure = jax.tree.structure(updates)
        steps, after = moved(updates, state.muon, decay_numbers(state.muon.count, beta, b1, b2, lengthen), eps)
        sides = {path: found for path, x in steps.items() if (found := _sides(path, x, spec)) is not None}
        steps |= orthogonal_steps({path: x for path, x in steps.items() if path not in sides}, spec)
        paths = list(steps)

        def of_matrices(tree: PyTree) -> list[jax.Array]:
            return [x for path, x in zip(paths, jax.tree.leaves(tree), strict=True) if path in sides]

        def with_matrices(tree: PyTree, arrays: Sequence[jax.Array]) -> PyTree:
            found = dict(zip(sides, arrays, strict=True))
            return jax.tree.unflatten(
                structure, [found.get(path, x) for path, x in zip(paths, jax.tree.leaves(tree), strict=True)]
            )

        gradients = [as_matrices(g, of) for g, of in zip(of_matrices(updates), sides.values(), strict=True)]
        momenta = [as_matrices(steps[path], of) for path, of in sides.items()]
        left = [b3 * kept + (1 - b3) * g @ _turned(g) for kept, g in zip(of_matrices(state.left), gradients, strict=True)]
        right = [b3 * kept + (1 - b3) * _turned(g) @ g for kept, g in zip(of_matrices(state.right), gradients, strict=True)]
        young = b3 ** (state.muon.count.astype(jnp.float32) + 1)
        covariances = [_as_from_identity(kept, young) for kept in (*left, *right)]
        if every == 1:
            roots = inverse_roots(covariances)
        else:
            due = (state.muon.count < every) | (state.muon.count % every == 0)
            kept = [*of_matrices(state.left_root), *of_matrices(state.right_root)]

            def computed(given: list[jax.Array]) -> list[jax.Array]:
                return [jnp.where(due, x, before) for x, before in zip(inverse_roots(given), kept, strict=True)]

            roots = jax.lax.cond(_of_any(due), computed, lambda _: kept, covariances)
        left_roots, right_roots = roots[: len(sides)], roots[len(sides) :]
        for (path, of), root, m, other in zip(sides.items(), left_roots, momenta, right_roots, strict=True):
            steps[path] = from_matrices(_as_long(root @ m @ other), of, steps[path].shape)
        state = ShampooState(
            after,
            with_matrices(state.left, left),
            with_matrices(state.right, right),
            with_matrices(state.left_root, left_roots) if every > 1 else state.left_root,
            with_matrices(state.right_root, right_roots) if every > 1 else state.right_root,
        )
        return jax.tree.unflatten(structure, list(steps.values())), state

    return optax.GradientTransformation(init, update)


@jax.custom_batching.custom_vmap
def _of_any(due: jax.Array) -> jax.Array:
    """What is asked, for all of a batch at once under `vmap`: nothing is computed where nobody needs it."""
    return due


@_of_any.def_vmap
def _of_batch(axis_size: int, in_batched: Sequence[bool], due: jax.Array) -> tuple[jax.Array, bool]:
    del axis_size
    return _of_any(jnp.any(due, axis=0) if in_batched[0] else due), False


def _sides(path: str, x: jax.Array, spec: WeightSpec | None) -> Sides | None:
    """What the matrices of a tensor are; None where none of them are Shampoo's."""
    if not is_matrix(x):
        return None
    sides = sides_of(x.shape, path, spec)
    largest = max(math.prod(x.shape[axis] for axis in side) for side in (sides.rows, sides.columns))
    return sides if largest <= LARGEST else None


def _as_from_identity(covariance: jax.Array, young: jax.Array) -> jax.Array:
    """An average that began at zero as if it had begun at the identity, times the mean eigenvalue; `young` is what is left of that.

    Of a few gradients the inverse root is large where they have nothing but noise, and a training would begin in its direction.
    """
    side = covariance.shape[-1]
    mean = jnp.trace(covariance, axis1=-2, axis2=-1)[..., None, None] / max(side, 1)
    identity = jnp.eye(side, dtype=covariance.dtype).reshape((1,) * (covariance.ndim - 2) + (side, side))
    return covariance + young / (1 - young) * mean * identity


def _as_long(x: jax.Array) -> jax.Array:
    """Matrices of the norm that Muon's step has."""
    rows, columns = x.shape[-2:]
    return _unit(x) * (min(rows, columns) * max(1.0, columns / rows if rows else 1.0)) ** 0.5


def _unit(x: jax.Array) -> jax.Array:
    """Matrices over their norms; first over the largest entry, as the squares of covariances may be less than any float32."""
    x = x / (jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True, initial=0) + TINY)
    return x / (jnp.sqrt(jnp.sum(jnp.square(x), axis=(-2, -1), keepdims=True)) + TINY)


def _turned(x: jax.Array) -> jax.Array:
    return jnp.swapaxes(x, -1, -2)
