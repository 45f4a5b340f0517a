"""A spec may be too small, never wrong: random programs over most primitives keep their value under what is inferred."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.symmetry import infer_spec

Rng = np.random.Generator
Operation = Callable[[Rng, list[jax.Array]], jax.Array]

SIZES = [1, 2, 3, 4, 6, 12]
LARGEST = 600  # entries of a value


def some(rng: Rng, pool: list[jax.Array], rank: int = 1) -> jax.Array:
    """A value of at least this rank; later ones are likelier, so that programs become deep."""
    fitting = [value for value in pool if value.ndim >= rank]
    return fitting[max(rng.integers(len(fitting), size=2))]


def axis_of(rng: Rng, x: jax.Array) -> int:
    return int(rng.integers(x.ndim))


def partner(rng: Rng, pool: list[jax.Array], x: jax.Array) -> jax.Array:
    """A value of x's shape: another one where there is one, stretched or transposed into it where that works."""
    fitting = [value for value in pool if value.shape == x.shape]
    fitting += [jnp.transpose(value) for value in pool if value.ndim > 1 and value.shape[::-1] == x.shape]
    fitting += [jnp.broadcast_to(value, x.shape) for value in pool if value.shape == x.shape[-1:] and x.ndim > 1]
    return fitting[rng.integers(len(fitting))]


def add(rng, pool):
    x = some(rng, pool)
    return jnp.tanh(x) + partner(rng, pool, x)


def multiply(rng, pool):
    x = some(rng, pool)
    return x * jnp.cos(partner(rng, pool, x))


def contract(rng, pool):
    x = some(rng, pool)
    axis = axis_of(rng, x)
    fitting = [(value, other) for value in pool for other in range(value.ndim) if value.shape[other] == x.shape[axis]]
    y, other = fitting[rng.integers(len(fitting))]
    return jnp.tensordot(x, y, axes=([axis], [other])) / x.shape[axis]


def transpose(rng, pool):
    x = some(rng, pool)
    return jnp.transpose(x, rng.permutation(x.ndim))


def reshape(rng, pool):
    x = some(rng, pool)
    shape, left = [], x.size
    while left > 1 and len(shape) < 3:
        divisors = [size for size in range(2, left + 1) if left % size == 0]
        shape.append(int(rng.choice(divisors)))
        left //= shape[-1]
    return x.reshape(*shape, left) if left > 1 else x.reshape(shape)


def split_axis(rng, pool):
    x = some(rng, pool)
    axis = axis_of(rng, x)
    first = int(rng.choice([size for size in range(1, x.shape[axis] + 1) if x.shape[axis] % size == 0]))
    return x.reshape(*x.shape[:axis], first, x.shape[axis] // first, *x.shape[axis + 1 :])


def merge_axes(rng, pool):
    x = some(rng, pool, 2)
    axis = int(rng.integers(x.ndim - 1))
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def reduce(rng, pool):
    x = some(rng, pool)
    axis = axis_of(rng, x)
    return [jnp.mean, jnp.max, jnp.prod, jax.nn.logsumexp][rng.integers(4)](x, axis=axis)


def softmax(rng, pool):
    x = some(rng, pool)
    return jax.nn.softmax(x, axis=axis_of(rng, x))


def normalize(rng, pool):
    x = some(rng, pool)
    return x - jnp.mean(x, axis=axis_of(rng, x), keepdims=True)


def broadcast(rng, pool):
    x = some(rng, pool)
    return (
        jnp.broadcast_to(x, (int(rng.choice([2, 3, 4])), *x.shape)) if rng.random() < 0.5 else jnp.expand_dims(x, axis_of(rng, x))
    )


def part(rng, pool):
    x = some(rng, pool)
    axis = axis_of(rng, x)
    start = int(rng.integers(x.shape[axis]))
    return jax.lax.slice_in_dim(x, start, int(rng.integers(start, x.shape[axis])) + 1, int(rng.integers(1, 3)), axis)


def halves(rng, pool):
    x = some(rng, pool)
    axis = axis_of(rng, x)
    return sum(jnp.split(jnp.sin(x), 2, axis)) if x.shape[axis] % 2 == 0 else x


def reverse(rng, pool):
    x = some(rng, pool)
    return x * jnp.cos(jnp.flip(x, axis_of(rng, x)))


def concatenate(rng, pool):
    x = some(rng, pool)
    axis = axis_of(rng, x)
    rest = x.shape[:axis] + x.shape[axis + 1 :]
    fitting = [value for value in pool if value.ndim == x.ndim and value.shape[:axis] + value.shape[axis + 1 :] == rest]
    return jnp.concatenate([x, fitting[rng.integers(len(fitting))]], axis)


def beside(rng, pool):
    """[x, y] @ W for vectors x and y, and as many rows of a matrix, or columns, as there are entries."""
    x, y = (jnp.mean(value.reshape(-1, value.shape[-1]), axis=0) for value in (some(rng, pool), some(rng, pool)))
    row = jnp.concatenate([x, jnp.sin(y)])
    matrices = [value for value in (*pool, *(value.T for value in pool)) if value.ndim == 2 and len(value) >= len(row)]
    if not matrices or rng.random() < 0.3:
        return row
    return jnp.tanh(row @ matrices[rng.integers(len(matrices))][: len(row)])


def exchange(rng, pool):
    """Parts of unequal length in another order, one of them changed."""
    x = some(rng, pool)
    axis = axis_of(rng, x)
    places = np.sort(rng.integers(x.shape[axis] + 1, size=2))
    first, second, third = jnp.split(x, places, axis)
    changed = jnp.concatenate([third, jnp.cos(first), second], axis)
    return changed * x if rng.random() < 0.3 else changed


def joined_and_split(rng, pool):
    """What is joined from several is cut at other places."""
    x = some(rng, pool)
    axis = axis_of(rng, x)
    both = jnp.concatenate([x, jnp.sin(partner(rng, pool, x)), x], axis)
    return jax.lax.slice_in_dim(
        both, int(rng.integers(x.shape[axis])), int(rng.integers(x.shape[axis], 3 * x.shape[axis])) + 1, 1, axis
    )


def stack(rng, pool):
    x = some(rng, pool)
    return jnp.stack([x, partner(rng, pool, x)], axis_of(rng, x))


def pad(rng, pool):
    x = some(rng, pool)
    width = [(0, 0)] * x.ndim
    width[axis_of(rng, x)] = (int(rng.integers(3)), 1)
    return jnp.pad(x, width)


def repeat(rng, pool):
    x = some(rng, pool)
    return (jnp.repeat if rng.random() < 0.5 else lambda x, n, axis: jnp.concatenate([x] * n, axis))(x, 2, axis_of(rng, x))


def tile(rng, pool):
    x = some(rng, pool)
    return jnp.tile(x, (2,) + (1,) * (x.ndim - 1))


def cumulate(rng, pool):
    x = some(rng, pool)
    return jnp.cumsum(x, axis=axis_of(rng, x)) / 3


def order(rng, pool):
    x = some(rng, pool)
    axis = axis_of(rng, x)
    return jnp.sort(x, axis=axis) if rng.random() < 0.5 else jnp.take_along_axis(x, jnp.argsort(x, axis=axis), axis=axis)


def pick(rng, pool):
    x = some(rng, pool)
    axis = axis_of(rng, x)
    if rng.random() < 0.5:
        return jnp.take(x, jnp.asarray(rng.integers(x.shape[axis], size=2)), axis=axis)
    return jax.lax.dynamic_slice_in_dim(x, jnp.asarray(x.shape[axis] // 2), 1, axis)


def choose(rng, pool):
    x = some(rng, pool)
    axis = axis_of(rng, x)
    best = jnp.argmax(x, axis)
    return [jax.nn.one_hot(best, x.shape[axis]), best.astype(jnp.float32), jax.lax.top_k(x, 1)[0]][rng.integers(3)]


def write(rng, pool):
    x = some(rng, pool)
    place = int(rng.integers(x.shape[0]))
    y = partner(rng, pool, x)[0]
    return [x.at[place].set(y), x.at[place].add(y), jax.lax.dynamic_update_index_in_dim(x, y, place, 0)][rng.integers(3)]


def mask(rng, pool):
    x = some(rng, pool)
    axis = axis_of(rng, x)
    places = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis)
    return jnp.where(places == int(rng.integers(x.shape[axis])), x, 0.5)


def diagonal(rng, pool):
    x = some(rng, pool)
    rows, columns = (jax.lax.broadcasted_iota(jnp.int32, (*x.shape, x.shape[-1]), axis) for axis in (x.ndim - 1, x.ndim))
    return jnp.where(rows == columns, jnp.expand_dims(x, -1), 0.0)


def scan(rng, pool):
    x = some(rng, pool)
    y = partner(rng, pool, x)
    start = jnp.zeros(x.shape[1:]) if rng.random() < 0.5 else y[0]
    carried = rng.random() < 0.7

    def step(carry, xs):
        one, other = xs
        carry = jnp.tanh(carry + one * other) if carried else carry
        return carry, jnp.sin(one) * carry

    last, steps = jax.lax.scan(step, start, (x, y))
    return last if rng.random() < 0.5 else steps


def each(rng, pool):
    x = some(rng, pool, 2)
    return jax.lax.map(lambda row: jnp.max(row) * jax.nn.softmax(row.ravel()), x)


def repeat_while(rng, pool):
    x = some(rng, pool)
    y = partner(rng, pool, x)
    return jax.lax.while_loop(lambda state: state[1] < 3, lambda state: (jnp.sin(state[0] + y), state[1] + 1), (x, 0))[0]


def branch(rng, pool):
    x = some(rng, pool)
    y = partner(rng, pool, x)
    return jax.lax.cond(jnp.sum(y) > 0.37, lambda x, y: x, lambda x, y: jnp.tanh(y), x, y)


def convolve(rng, pool):
    x = some(rng, pool, 2)
    image = x.reshape(1, -1, *x.shape[-2:]) if rng.random() < 0.5 else x.reshape(1, *x.shape[-2:], -1)
    kernels = [value for value in pool if value.ndim == 2 and value.shape[0] == image.shape[-1]]
    if not kernels:
        return x
    kernel = kernels[rng.integers(len(kernels))][None, None]
    return jax.lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))[0]


def pool_window(rng, pool):
    x = some(rng, pool)
    window = [1] * x.ndim
    axis = axis_of(rng, x)
    window[axis] = x.shape[axis] if rng.random() < 0.5 else min(2, x.shape[axis])
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, tuple(window), (1,) * x.ndim, "VALID")


def wrap(rng, pool):
    x = some(rng, pool)
    return jax.checkpoint(jax.jit(lambda x: jax.nn.relu(x - 0.1)))(x)


def identity(rng, pool):
    x = some(rng, pool, 2)
    if x.shape[-1] != x.shape[-2]:
        x = x @ jnp.swapaxes(x, -1, -2) / x.shape[-1]
    size = x.shape[-1]
    eye = [jnp.eye(size), np.eye(size, dtype="f"), 1 - 0.5 * np.eye(size, dtype="f"), jnp.eye(size, k=1)][rng.integers(4)]
    if rng.random() < 0.5:
        return x + jnp.broadcast_to(eye, x.shape)
    return [lambda x: jnp.diagonal(x, axis1=-2, axis2=-1), lambda x: jnp.trace(x, axis1=-2, axis2=-1)][rng.integers(2)](x)


def embed(rng, pool):
    """Rows by a mapped look-up: at places of data, or in order, in which all of them are read."""
    x = some(rng, pool)
    places = jnp.asarray(rng.integers(x.shape[0], size=3)) if rng.random() < 0.5 else np.arange(x.shape[0])
    return jax.vmap(lambda place: jnp.sin(x)[place])(places)


def compare_places(rng, pool):
    x = some(rng, pool)
    places = jnp.arange(x.shape[0]) + int(rng.integers(2))
    rows = [places[:, None] == np.arange(x.shape[0])[None], jnp.maximum(places, 1)[:, None] == places[None]][rng.integers(2)]
    return jnp.tensordot(rows.astype(jnp.float32), x, axes=1)


def segments(rng, pool):
    x = some(rng, pool)
    if rng.random() < 0.5:
        return jax.ops.segment_sum(jnp.tanh(x), jnp.asarray(rng.integers(3, size=x.shape[0])), 3)
    places = jnp.asarray(rng.integers(x.shape[0], size=x.shape[0]))
    return [x.at[places].add(jnp.cos(x)), x.at[places].subtract(jnp.cos(x)), jnp.sin(x)[places] * x][rng.integers(3)]


def over_a_name(rng, pool):
    x = some(rng, pool)
    axis, collective = axis_of(rng, x), [jax.lax.pmean, jax.lax.pmax, jax.lax.psum][rng.integers(3)]
    return jax.vmap(lambda x: jnp.tanh(x) - collective(x, "rows"), axis, axis, axis_name="rows")(x)


def solve(rng, pool):
    x = some(rng, pool, 2)
    square = jnp.matmul(x, jnp.swapaxes(x, -1, -2)) / x.shape[-1]
    square += jnp.broadcast_to(2 * jnp.eye(x.shape[-2]), square.shape)
    return [lambda a, b: jnp.linalg.solve(a, b), lambda a, b: jnp.linalg.cholesky(a), jnp.linalg.matmul][rng.integers(3)](
        square, x
    )


def grouped_rows(rng, pool):
    x = some(rng, pool, 2)
    rows = x.reshape(-1, x.shape[-1])
    fitting = [value for value in pool if value.ndim == 3 and value.shape[1] == rows.shape[-1]]
    y = fitting[rng.integers(len(fitting))] if fitting else jnp.stack([rows.T, jnp.sin(rows.T)])
    counts = np.full(y.shape[0], len(rows) // y.shape[0])
    counts[0] += len(rows) - counts.sum()
    return jax.lax.ragged_dot(rows, y, jnp.asarray(counts, jnp.int32)) / x.shape[-1]


def pooled_gradient(rng, pool):
    x = some(rng, pool)
    window = [1] * x.ndim
    axis = axis_of(rng, x)
    window[axis] = min(2, x.shape[axis])

    def pooled(x):
        return jnp.sum(jnp.sin(jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, tuple(window), (1,) * x.ndim, "VALID")))

    return jax.grad(pooled)(x)


def reduce_by(rng, pool):
    x = some(rng, pool)
    return jax.lax.reduce(x, np.float32(1.0), lambda a, b: a * jnp.tanh(b) + a, (axis_of(rng, x),))


OPERATIONS: list[Operation] = [
    add, multiply, contract, transpose, reshape, split_axis, merge_axes, reduce, softmax, normalize, broadcast, part, halves,
    reverse, concatenate, stack, pad, repeat, tile, cumulate, order, pick, choose, write, mask, diagonal, scan, each,
    repeat_while, branch, convolve, pool_window, wrap, identity, embed, compare_places, segments, over_a_name, solve, grouped_rows,
    pooled_gradient, reduce_by, beside, exchange, joined_and_split,
]  # fmt: skip
LIKELY: list[Operation] = [add, multiply, contract, merge_axes, split_axis, reduce, normalize, transpose, scan, softmax]


def random_program(seed: int, operation: Operation) -> tuple[Callable[..., jax.Array], dict[str, jax.Array]]:
    """A function of a few weights and one array of data that ends in symmetric reductions.

    A few likely operations, the given one, a few of any kind.
    """
    rng = np.random.default_rng(seed)
    shapes = [tuple(int(size) for size in rng.choice(SIZES, size=rng.integers(1, 4))) for _ in range(rng.integers(2, 5))]
    params = {f"w{index}": jnp.asarray(rng.normal(size=shape), jnp.float32) for index, shape in enumerate(shapes)}

    def program(params, data):
        rng = np.random.default_rng(seed)
        before = [LIKELY[index] for index in rng.integers(len(LIKELY), size=rng.integers(3))]
        after = [(LIKELY if rng.random() < 0.6 else OPERATIONS) for _ in range(rng.integers(1, 4))]
        pool = [data, *params.values()]
        for step in [*before, operation, operation, *(choices[rng.integers(len(choices))] for choices in after)]:
            try:
                result = step(rng, pool)
            except IndexError:  # no value of the pool fits
                continue
            if 1 <= result.size <= LARGEST and result.ndim:
                pool.append(result)
        return sum(jnp.mean((1 + squashed) ** 3) for squashed in (x / (1 + jnp.abs(x)) for x in pool[1 + len(params) :]))

    return program, params


def derangement(rng: Rng, size: int) -> np.ndarray:
    """A cycle of all indices."""
    order, relabel = np.empty(size, int), rng.permutation(size)
    order[relabel] = np.roll(relabel, 1)
    return order


def permutable_if_sound(seed: int, operation: Operation) -> int:
    """How many names may be permuted, so that callers can tell that something was tested."""
    program, params = random_program(seed, operation)
    data = jnp.asarray(np.random.default_rng(seed).normal(size=(3, 4)), jnp.float32)
    spec = infer_spec(program, params, data, check=False)
    compiled = jax.jit(program)
    before, sizes, host = compiled(params, data), spec.sizes(params), jax.tree.map(np.asarray, params)
    for name in spec.permutable:
        order = derangement(np.random.default_rng(seed), sizes[name])
        if name in spec.nested:
            rows = np.random.default_rng(seed)
            order = np.stack([rows.permutation(order) for _ in range(sizes[spec.nested[name]])])
        after = compiled(spec.move(np, host, sizes, {name: order}), data)  # in JAX every shape would be compiled
        assert abs(after - before) <= 2e-5 * (1 + abs(before)), f"{operation.__name__}, seed {seed}: '{name}' in\n{spec}"
    return len(spec.permutable)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_random_programs_are_invariant(operation):
    assert sum(permutable_if_sound(seed, operation) for seed in range(3)) >= 3


def test_some_of_the_programs_have_axes_in_parts():
    found = 0
    for operation in (beside, exchange, joined_and_split, part):
        for seed in range(6):
            program, params = random_program(seed, operation)
            data = jnp.asarray(np.random.default_rng(seed).normal(size=(3, 4)), jnp.float32)
            found += infer_spec(program, params, data, check=False).in_parts
    assert found >= 6


@pytest.mark.slow
@pytest.mark.compiles
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_many_random_programs_are_invariant(operation):
    assert sum(permutable_if_sound(seed, operation) for seed in range(100, 140)) >= 40
