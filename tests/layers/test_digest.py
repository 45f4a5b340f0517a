"""What a layer needs of features, by blocks and by the kernel in C++, against the features themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.layers.digest import BLOCK, Channel, Needs, clip_and_normalize, clip_channels, is_digested
from lopt.layers.digest import digest as digest_tensors
from lopt.layers.kernels import ffi as native
from lopt.layers.kernels.build import find_compiler, load_kernels
from lopt.layers.pointwise import pointwise, pointwise_bfloat16
from lopt.networks.update import DeepSetsConfig, UNFConfig
from lopt.symmetry.spec import WeightSpec
from tests.paper_features import SEEN, weight_features

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="there is no C++ compiler")


@pytest.fixture(scope="module")
def loaded():
    return load_kernels()


@pytest.fixture
def with_kernel(loaded):
    native.use(lambda: loaded)
    yield
    native.use(None)


@pytest.fixture(params=["blocks", pytest.param("kernel", marks=needs_compiler)])
def way(request):
    """Both ways of computing digests."""
    if request.param == "kernel":
        request.getfixturevalue("with_kernel")
    return request.param


def dense(key, widths):
    keys = jax.random.split(key, 2 * len(widths))
    pairs = zip(widths, widths[1:], keys[::2], keys[1::2], strict=False)
    return [(jax.random.normal(k, (a, b)) / a**0.5, jax.random.normal(q, (b,))) for a, b, k, q in pairs]


def digest(layers, channels, needs, apply_pointwise=pointwise):
    """Of one tensor, whose channels come as arrays [c, *shape]."""
    return digest_tensors(layers, {"w": one_by_one(channels)}, {"w": needs}, apply_pointwise)["w"]


def one_by_one(channels):
    return tuple(x for part in channels for x in part)


def channels_of(key, shape, parts=(1, 1, 6)):
    keys = jax.random.split(key, len(parts))
    return tuple(
        10.0 ** (1 - 2 * i) * jax.random.normal(k, (c, *shape)) for i, (k, c) in enumerate(zip(keys, parts, strict=True))
    )


# Tensors within a tile and beyond, rows shorter and longer than a tile, cut along each axis, by several threads.
CONFIGS = [UNFConfig((7, 6)), UNFConfig((7, 6), equivariant=(3,)), UNFConfig((7, 6), share="role"), DeepSetsConfig((7, 6))]
SHAPES = [
    (),
    (5,),
    (48,),
    (1000,),
    (7, 3),
    (64, 32),
    (3, 200),
    (200, 3),
    (3, 4, 50),
    (2, 301, 5),
    (150, 190),
    (5, 9001),
    (9001, 5),
]


@pytest.mark.parametrize(
    ("shape", "way"), [((7, 3), "blocks"), ((150, 190), "blocks"), *((s, "kernel") for s in SHAPES)], indirect=["way"]
)
def test_products_means_and_diagonals(shape, way):
    layers, channels = dense(jax.random.key(0), (8, 11, 20)), channels_of(jax.random.key(1), shape)
    matrix = jax.random.normal(jax.random.key(2), (20, 3))
    features = pointwise(layers, clip_and_normalize(jnp.concatenate(channels)).reshape(8, -1)).reshape(20, *shape)
    needs = Needs(shape, matrix, tuple(range(len(shape))))
    found = jax.jit(lambda: digest(layers, channels, needs))()
    np.testing.assert_allclose(found.product, jnp.tensordot(matrix.T, features, 1), rtol=2e-5, atol=2e-5)
    assert set(found.means) == set(range(len(shape)))
    for axis, mean in found.means.items():
        np.testing.assert_allclose(mean, features.mean(axis=1 + axis), rtol=2e-5, atol=2e-5)


def test_tensors_together_are_as_one_by_one(way):
    """With other numbers of arrays, axes and columns each; together they are enough for threads."""
    shapes = [(40, 30), (), (9001, 5), (64, 48), (5,), (3, 200)]
    layers = dense(jax.random.key(0), (8, 11, 20))
    channels, needs = {}, {}
    for i, shape in enumerate(shapes):
        key = jax.random.key(i)
        channels[str(i)] = one_by_one(channels_of(key, shape, [(1, 1, 6), (8,), (3, 5)][i % 3]))
        needs[str(i)] = Needs(shape, jax.random.normal(key, (20, 1 + i)), tuple(range(len(shape)))[i % 2 :])
    needs |= {"other": Needs((3,), jnp.ones((20, 1)))}
    found = jax.jit(lambda: digest_tensors(layers, channels, needs))()
    assert list(found) == list(channels)
    for path, one in found.items():
        alone = digest(layers, [x[None] for x in channels[path]], needs[path])
        assert set(one.means) == set(needs[path].means)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), one, alone)


def test_no_tensor(way):
    assert digest_tensors(dense(jax.random.key(0), (8, 4)), {}, {}) == {}


def test_a_diagonal(way):
    layers, channels = dense(jax.random.key(0), (8, 6)), channels_of(jax.random.key(1), (4, 4))
    features = pointwise(layers, clip_and_normalize(jnp.concatenate(channels)).reshape(8, -1)).reshape(6, 4, 4)
    found = digest(layers, channels, Needs((4, 4), jnp.ones((6, 1)), (), (((0, 1),),)))
    assert found.means == {}
    np.testing.assert_allclose(found.diagonals[((0, 1),)], jnp.diagonal(features, axis1=1, axis2=2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("widths", [(1, 1), (8, 32, 32, 32), (3, 50, 7, 9)], ids=str)
def test_layers_of_any_widths(widths, way):
    layers, channels = dense(jax.random.key(0), widths), channels_of(jax.random.key(1), (10, 10), (widths[0],))
    matrix = jax.random.normal(jax.random.key(2), (widths[-1], 17))
    features = pointwise(layers, clip_and_normalize(channels[0]).reshape(widths[0], -1))
    found = digest(layers, channels, Needs((10, 10), matrix))
    np.testing.assert_allclose(found.product.reshape(17, -1), matrix.T @ features, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
def test_what_is_not_finite_is_not_masked(value, way):
    """NaN makes all NaN, as the norm of its channel is; what is infinite is clipped."""
    (channels,) = channels_of(jax.random.key(1), (4, 60), (2,))
    channels = channels.at[0, 1, 2].set(value)
    layers, matrix = dense(jax.random.key(0), (2, 5)), jnp.ones((5, 1))
    found = digest(layers, (channels,), Needs((4, 60), matrix, (0, 1)))
    expected = matrix.T @ pointwise(layers, clip_and_normalize(channels).reshape(2, -1))
    np.testing.assert_allclose(found.product.reshape(1, -1), expected, rtol=2e-5, atol=2e-5)
    assert jnp.all(jnp.isfinite(found.means[0])) == jnp.isfinite(jnp.sum(expected))


def test_derivatives_and_batches(way):
    """Forwards, backwards, and one after another under vmap."""
    keys = jax.random.split(jax.random.key(0), 3)
    layers, channels = jax.vmap(lambda k: dense(k, (8, 6, 5)))(keys), jax.vmap(lambda k: channels_of(k, (9, 4)))(keys)
    matrix = jax.random.normal(jax.random.key(1), (5, 2))

    def outcome(layers, channels):
        found = jax.vmap(lambda a, b: digest(a, b, Needs((9, 4), matrix, (0, 1))))(layers, channels)
        return jnp.sum(jnp.sin(found.product)) + sum(jnp.sum(jnp.cos(mean)) for mean in found.means.values())

    def truth(layers, channels):
        def one(layers, channels):
            x = clip_and_normalize(jnp.concatenate(channels))
            y = pointwise(layers, x.reshape(8, -1)).reshape(5, 9, 4)
            return jnp.sum(jnp.sin(jnp.tensordot(matrix.T, y, 1))) + sum(jnp.sum(jnp.cos(y.mean(axis=1 + i))) for i in (0, 1))

        return jnp.sum(jax.vmap(one)(layers, channels))

    expected, found = (jax.value_and_grad(f, argnums=(0, 1))(layers, channels) for f in (truth, outcome))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)
    tangents = jax.tree.map(jnp.ones_like, (layers, channels))
    expected, found = (jax.jvp(f, (layers, channels), tangents)[1] for f in (truth, outcome))
    np.testing.assert_allclose(found, expected, rtol=1e-3)


@needs_compiler
def test_threads_change_nothing(with_kernel):
    """Parts of a tensor are summed in their order, whichever thread has computed them."""
    layers, channels = dense(jax.random.key(0), (8, 16)), channels_of(jax.random.key(1), (300, 200))
    run = jax.jit(lambda: digest(layers, channels, Needs((300, 200), jnp.ones((16, 1)), (0, 1))))
    first = run()
    for _ in range(10):
        jax.tree.map(np.testing.assert_array_equal, run(), first)


@needs_compiler
@pytest.mark.parametrize(
    "config", [UNFConfig((7, 6)), UNFConfig((7, 6), equivariant=(3,)), UNFConfig((7, 6), share="role"), DeepSetsConfig((7, 6))]
)
@pytest.mark.parametrize("side", [4, 150])
def test_update_network_is_the_same_with_the_kernel(config, side, loaded):
    spec = WeightSpec.parse({"w": "inputs! units", "r": "units units", "b": "units"})
    params = {"w": jax.random.normal(jax.random.key(0), (3, side)), "r": jnp.eye(side) * 0.3, "b": jnp.ones(side)}
    momenta = jax.tree.map(lambda w: jnp.stack([w * i for i in range(6)]), params)
    network = config.make(spec, SEEN, 1)
    theta = network.init(jax.random.key(1))

    def update():
        features = weight_features(params, params, momenta, jnp.int32(3))
        return network.apply(theta, features), {path for path, w in params.items() if is_digested(w.shape)}

    expected, digested = update()
    assert digested == ({"r"} if side**2 >= BLOCK else set())
    native.use(lambda: loaded)
    try:
        found, digested = update()
    finally:
        native.use(None)
    assert digested == set(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)


@needs_compiler
@pytest.mark.parametrize(("widths", "shape"), [((8, 32, 32, 32), (70, 90)), ((3, 7, 5), (11,))], ids=str)
def test_operands_in_bfloat16_are_rounded_as_by_xla(widths, shape, with_kernel):
    if not load_kernels().bfloat16:
        pytest.skip("this processor does not multiply bfloat16")
    layers, channels = dense(jax.random.key(0), widths), channels_of(jax.random.key(1), shape, (widths[0],))
    needs = Needs(shape, jax.random.normal(jax.random.key(2), (widths[-1], 3)), tuple(range(len(shape))))
    normalized = clip_and_normalize(channels[0]).reshape(widths[0], -1)
    rounded, exact = (f(layers, normalized).reshape(-1, *shape) for f in (pointwise_bfloat16, pointwise))
    found = digest(layers, channels, needs, pointwise_bfloat16)
    expected, without_rounding = (jnp.tensordot(needs.matrix.T, x, 1) for x in (rounded, exact))
    rounding = jnp.linalg.norm(expected - without_rounding)
    assert jnp.linalg.norm(found.product - expected) < 0.1 * rounding
    assert 1e-3 * jnp.linalg.norm(without_rounding) < rounding < 2e-2 * jnp.linalg.norm(without_rounding)
    for axis, mean in found.means.items():
        np.testing.assert_allclose(mean, rounded.mean(axis=1 + axis), rtol=1e-3, atol=1e-3)


@needs_compiler
def test_other_dtypes_are_left_to_xla(with_kernel):
    layers, channels = dense(jax.random.key(0), (8, 5)), channels_of(jax.random.key(1), (6,))
    half = tuple(x.astype(jnp.bfloat16) for x in channels)
    assert native.is_computed(channels)
    assert not native.is_computed(half)
    assert not native.is_computed([jnp.ones((8, 0))])
    program = jax.make_jaxpr(lambda: digest(layers, channels, Needs((6,), jnp.ones((5, 1)))))()
    assert "ffi_call" in str(program)


def test_channels_are_clipped():
    np.testing.assert_array_equal(clip_channels(jnp.array([[3.0, -0.5], [-7.0, 1.0]])), [[1, -0.5], [-1, 1]])


DECLARED = (
    Channel(clip=0.5, outside=0.1),
    Channel(inside=1e-3),
    Channel(clip=0.2, over="nothing"),
    Channel(inside=1e-9, over="matrix"),
)


@pytest.mark.parametrize("shape", [(6, 50), (7,), (), (3, 5, 4)], ids=str)
def test_channels_declare_how_they_are_clipped_and_normalised(shape, way):
    """And a tensor may have a bias of its own; written out here for one channel after another."""
    layers, (channels,) = dense(jax.random.key(0), (4, 9, 7)), channels_of(jax.random.key(1), shape, (4,))
    bias, matrix = jax.random.normal(jax.random.key(2), (9,)), jax.random.normal(jax.random.key(3), (7, 2))
    rows = []
    for x, channel in zip(np.asarray(channels, np.float64), DECLARED, strict=True):
        x = np.clip(x, -channel.clip, channel.clip)
        axes = tuple(range(x.ndim))[-2:] if channel.over == "matrix" else None
        size = np.sqrt((x**2).mean(axis=axes, keepdims=True) + channel.inside) + channel.outside
        rows.append(x if channel.over == "nothing" else x / size)
    y = np.stack(rows).reshape(4, -1)
    for i, (kernel, usual) in enumerate(layers):
        y = np.maximum(np.asarray(kernel, np.float64).T @ y + np.asarray(usual if i else bias, np.float64)[:, None], 0)
    needs = {"w": Needs(shape, matrix, tuple(range(len(shape))))}
    found = digest_tensors(layers, {"w": tuple(channels)}, needs, declared=DECLARED, biases={"w": bias})["w"]
    np.testing.assert_allclose(found.product.reshape(2, -1), matrix.T @ y, rtol=1e-4, atol=1e-4)
    for axis, mean in found.means.items():
        np.testing.assert_allclose(mean, y.reshape(7, *shape).mean(axis=1 + axis), rtol=1e-4, atol=1e-4)
