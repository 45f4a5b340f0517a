"""Orthogonalised momentum: Newton-Schulz of all matrices of a shape at once, and Muon made of it.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); coefficients, Nesterov momentum, bias correction and
the scale for shapes are those of `optax.contrib.muon`, of which this is the batched form.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lopt.layers.kernels import ffi as native
from lopt.optimizers.leaves import plain_path
from lopt.symmetry.spec import PyTree, WeightSpec, named_leaves

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

    def is_served(x: jax.Array) -> bool:
        return x.shape[-2] * x.shape[-1] <= IN_CACHE and native.is_computed([x])

    with jax.named_scope("newton_schulz"):
        return native.divided(tensors, is_served, partial(_by_kernel, steps), partial(_by_xla, steps))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _by_kernel(steps: int, tensors: list[jax.Array]) -> list[jax.Array]:
    return native.newton_schulz_call(tensors, steps, (*COEFFICIENTS, EPS))


@_by_kernel.defjvp
def _by_kernel_jvp(steps: int, primals: Any, tangents: Any) -> Any:
    return jax.jvp(partial(_by_xla, steps), primals, tangents)


def _by_xla(steps: int, tensors: Sequence[jax.Array]) -> list[jax.Array]:
    """Matrices of one shape, up to transposition, at once."""

    def wide(x: jax.Array, like: jax.Array) -> jax.Array:
        return x if like.shape[-2] <= like.shape[-1] else jnp.swapaxes(x, -1, -2)

    found = in_batches([wide(x, x) for x in tensors], lambda x: _iterate(x, steps))
    return [wide(x, like) for x, like in zip(found, tensors, strict=True)]


def in_batches(tensors: Sequence[jax.Array], function: Callable[[jax.Array], jax.Array]) -> list[jax.Array]:
    """What a function of matrices, [N, rows, columns] to the same, makes of tensors: those whose last two axes are alike are one batch."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, x in enumerate(tensors):
        groups.setdefault(x.shape[-2:], []).append(i)
    found: dict[int, jax.Array] = {}
    for sides, members in groups.items():
        given = [tensors[i] for i in members]
        flat = [jnp.reshape(x, (-1, *sides)) if x.size else jnp.zeros((0, *sides), x.dtype) for x in given]
        y, start = function(flat[0] if len(flat) == 1 else jnp.concatenate(flat)), 0
        for i, x, part in zip(members, given, flat, strict=True):
            found[i] = jnp.reshape(y[start : start + len(part)], x.shape)
            start += len(part)
    return [found[i] for i in range(len(tensors))]


def _iterate(x: jax.Array, steps: int) -> jax.Array:
    a, b, c = COEFFICIENTS
    x = x / (jnp.sqrt(jnp.sum(jnp.square(x), axis=(-2, -1), keepdims=True)) + EPS)

    def once(_: Any, x: jax.Array) -> jax.Array:
        squares = x @ jnp.swapaxes(x, -1, -2)
        return a * x + (b * squares + c * squares @ squares) @ x

    if x.shape[-2] * x.shape[-1] > IN_CACHE:  # a loop is compiled faster, and costs nothing beside such products
        return jax.lax.fori_loop(0, steps, once, x)
    for _ in range(steps):
        x = once(None, x)
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


class Sides(NamedTuple):
    """A tensor as a batch of matrices.

    Attributes:
      batch: axes of which every entry is a matrix of its own.
      rows: the axes of a layer's inputs.
      columns: of its outputs.
    """

    batch: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]


def sides_of(shape: Sequence[int], path: str = "", spec: WeightSpec | None = None) -> Sides:
    """Which axes of a tensor of rank 2 or more are rows and columns: its layer's inputs and outputs, where the spec has the leaf.

    Without a spec these are the last two axes, behind a batch; of a convolution the window is part of the inputs.

    Example:
      >>> sides_of((3, 3, 8, 16)).rows, sides_of((5, 8, 16)).rows
      ((0, 1, 2), (1,))
      >>> spec = WeightSpec.parse({"query": "c heads q@heads", "linear": {"bias": "b", "weight": "b a"}})
      >>> [(x.rows, x.columns) for x in (sides_of((8, 2, 4), "query", spec), sides_of((4, 8), "linear/weight", spec))]
      [((0,), (1, 2)), ((1,), (0,))]
    """
    rank, path = len(shape), plain_path(path)
    if spec is None or path not in spec.paths:
        first = 0 if has_window(shape) else rank - 2
        return Sides(tuple(range(first)), tuple(range(first, rank - 1)), (rank - 1,))
    inputs, outputs = spec.sides(path)
    batch = () if has_window(shape) else spec.batch_axes(path)
    return Sides(batch, *(tuple(i for i in axes if i not in batch) for axes in (inputs, outputs)))


def as_matrices(x: jax.Array, sides: Sides) -> jax.Array:
    """A tensor as [*batch, rows, columns]."""
    ordered = jnp.transpose(x, (*sides.batch, *sides.rows, *sides.columns))
    shape = [math.prod(x.shape[axis] for axis in side) for side in (sides.rows, sides.columns)]
    return jnp.reshape(ordered, (*(x.shape[axis] for axis in sides.batch), *shape))


def from_matrices(matrices: jax.Array, sides: Sides, shape: Sequence[int]) -> jax.Array:
    """What `as_matrices` made a batch of matrices of, in its own shape."""
    order = (*sides.batch, *sides.rows, *sides.columns)
    return jnp.transpose(jnp.reshape(matrices, [shape[axis] for axis in order]), sorted(range(len(order)), key=order.__getitem__))


def orthogonalized(tensors: Mapping[str, jax.Array], spec: WeightSpec | None) -> dict[str, tuple[jax.Array, Sides]]:
    """Leaf path -> its matrices after `newton_schulz`, [*batch, rows, columns], and what they are; of tensors of rank 2 or more."""
    sides = {path: sides_of(x.shape, path, spec) for path, x in tensors.items() if is_matrix(x)}
    found = newton_schulz([as_matrices(tensors[path], of) for path, of in sides.items()])
    return {path: (x, of) for (path, of), x in zip(sides.items(), found, strict=True)}


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


def scale_by_muon(
    beta: Any = 0.95,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: float = EPS,
    lengthen: float | None = None,
    spec: WeightSpec | None = None,
) -> optax.GradientTransformation:
    """Muon for matrices, NAdam for vectors and scalars: the positive direction of `optax.contrib.muon`.

    Of a matrix R x C the direction is NS(Nesterov momentum) times sqrt(max(1, C / R)). What a tensor's matrices are, `sides_of` says.

    Args:
      beta: decay of the momentum of matrices.
      b1: of vectors.
      b2: decay of the second moment of vectors.
      eps: added to its root.
      lengthen: after t steps momenta average over sqrt(1 + t / lengthen) times as many gradients as at first; None: over as many.
      spec: of the weights, where it is known.
    """

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None) -> tuple[PyTree, MuonState]:
        del params
        steps, after = moved(updates, state, decay_numbers(state.count, beta, b1, b2, lengthen), eps)
        steps |= orthogonal_steps(steps, spec)
        return jax.tree.unflatten(jax.tree.structure(updates), list(steps.values())), after

    return optax.GradientTransformation(muon_state, update)


def muon_state(params: PyTree) -> MuonState:
    """Before the first step."""
    mu = jax.tree.map(lambda w: jnp.zeros_like(w, jnp.float32), params)
    nu = jax.tree.map(lambda w: jnp.zeros((), jnp.float32) if is_matrix(w) else jnp.zeros_like(w, jnp.float32), params)
    return MuonState(jnp.zeros((), jnp.int32), mu, nu)


def moved(updates: PyTree, state: MuonState, numbers: jax.Array, eps: float) -> tuple[dict[str, jax.Array], MuonState]:
    """Leaf path -> Nesterov's step, of vectors over the root of the second moment; and the state after these gradients."""
    structure, paths = jax.tree.structure(updates), [path for path, _ in named_leaves(updates)]
    of_leaves = zip(jax.tree.leaves(updates), jax.tree.leaves(state.mu), jax.tree.leaves(state.nu), strict=True)
    leaves = [native.Moments(g, m, None if is_matrix(g) else v) for g, m, v in of_leaves]
    found = _moved(numbers, leaves, eps)
    mu = jax.tree.unflatten(structure, [leaf.mean for leaf, _ in found])
    before = zip(found, jax.tree.leaves(state.nu), strict=True)
    nu = jax.tree.unflatten(structure, [v if leaf.square is None else leaf.square for (leaf, _), v in before])
    after = MuonState(jnp.asarray(optax.safe_increment(state.count)), mu, nu)
    return dict(zip(paths, (step for _, step in found), strict=True)), after


def orthogonal_steps(steps: Mapping[str, jax.Array], spec: WeightSpec | None) -> dict[str, jax.Array]:
    """Leaf path -> Muon's step, of those steps that are of matrices."""
    found = orthogonalized(steps, spec)
    return {path: from_matrices(_scaled(x), sides, steps[path].shape) for path, (x, sides) in found.items()}


def decay_numbers(count: jax.Array, beta: Any, b1: Any, b2: Any, lengthen: float | None) -> jax.Array:
    """Decays, and by what averages are multiplied to be unbiased and a step ahead, in the order of `native.moments_call`.

    With decays that rise, the bias is taken to be that of the present one: by the time that they differ there is none left.
    """
    t = count.astype(jnp.float32) + 1

    def lengthened(decay: Any) -> jax.Array:
        decay = jnp.asarray(decay, jnp.float32)
        return decay if lengthen is None else 1 - (1 - decay) * jax.lax.rsqrt(1 + t / lengthen)

    def ahead(decay: jax.Array) -> list[jax.Array]:
        return [decay, decay / (1 - decay ** (t + 1)), (1 - decay) / (1 - decay**t)]

    second = jnp.asarray(b2, jnp.float32)
    return jnp.stack([*ahead(lengthened(beta)), *ahead(lengthened(b1)), second, 1 / (1 - second**t)])


def _moved(numbers: jax.Array, leaves: Sequence[native.Moments], eps: float) -> list[tuple[native.Moments, jax.Array]]:
    """Leaves after their gradients, and their steps; of matrices before they are orthogonalised."""
    by_kernel, by_xla = partial(_moved_by_kernel, eps, numbers), partial(_moved_by_xla, eps, numbers)
    return native.divided(leaves, lambda leaf: native.is_computed(jax.tree.leaves(leaf)), by_kernel, by_xla)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _moved_by_kernel(eps: float, numbers: jax.Array, leaves: list[native.Moments]) -> list[tuple[native.Moments, jax.Array]]:
    return native.moments_call(numbers, leaves, eps)


@_moved_by_kernel.defjvp
def _moved_by_kernel_jvp(eps: float, primals: Any, tangents: Any) -> Any:
    return jax.jvp(partial(_moved_by_xla, eps), primals, tangents)


def _moved_by_xla(eps: float, numbers: jax.Array, leaves: list[native.Moments]) -> list[tuple[native.Moments, jax.Array]]:
    found = []
    for leaf in leaves:
        decay, of_mean, of_gradient = numbers[0:3] if leaf.square is None else numbers[3:6]
        g, square = leaf.gradient, leaf.square
        mean = decay * leaf.mean + (1 - decay) * g
        step = of_mean * mean + of_gradient * g
        if square is not None:
            square = numbers[6] * square + (1 - numbers[6]) * jnp.square(g)
            step = step / (jnp.sqrt(square * numbers[7]) + eps)
        found.append((native.Moments(g, mean, square), step))
    return found


def _scaled(x: jax.Array) -> jax.Array:
    rows, columns = x.shape[-2:]
    return x * max(1.0, columns / rows if rows else 1.0) ** 0.5
