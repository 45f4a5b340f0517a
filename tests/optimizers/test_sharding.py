"""State and updates lie where the weights do, and are those of one device: FSDP and tensor-parallel layouts over eight devices.

On meshes with automatic axes the compiler may cut what an update returns finer than the weights, but never more coarsely.

In a process of its own, as the number of devices is set once.
"""

import itertools
import os
import subprocess
import sys
import textwrap

import pytest

CODE = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import lopt
from lopt.features.presets import AdafactorFeatures
from lopt.networks.update import UNFConfig
from lopt.optimizers.config import LearnedOptimizerConfig
from lopt.optimizers.direction import DirectionRule
from lopt.symmetry import WeightSpec

spec = WeightSpec.parse({"up": {"w": "in! hidden", "b": "hidden"}, "down": {"w": "hidden out!", "b": "out!"}, "more": "out! hidden"})
shapes = {"up": {"w": (8, 16), "b": (16,)}, "down": {"w": (16, 8), "b": (8,)}, "more": (8, 16)}
LAYOUTS = {
    "fsdp": {"up": {"w": P(("x", "y")), "b": P(("x", "y"))}, "down": {"w": P(("x", "y")), "b": P(("x", "y"))}, "more": P("x")},
    "tensor": {"up": {"w": P("x", "y"), "b": P("y")}, "down": {"w": P("y", "x"), "b": P()}, "more": P(None, "y")},
}

def transform(name):
    if name == "loaded":
        return lopt.load("lopt-direction-unf", learning_rate=0.01, spec=spec)
    config = LearnedOptimizerConfig(DirectionRule(weight_decay=0.1), AdafactorFeatures(), UNFConfig((4,), share="role"))
    optimizer = config.make(spec)
    return optimizer.opt_fn(optimizer.init(jax.random.key(0)))

def draw(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s), jnp.float32), shapes, is_leaf=lambda x: isinstance(x, tuple))

def train(tx, params, grads, state):
    for _ in range(2):
        updates, state = step(tx, grads, state, params)
        params = optax.apply_updates(params, updates)
    return updates, state

def step(tx, grads, state, params):
    return jax.jit(tx.update)(grads, state, params)

def finer(x, w):
    return all(a <= b for a, b in zip(x.sharding.shard_shape(x.shape), w.sharding.shard_shape(w.shape), strict=True))

tx, axes, layout = transform(sys.argv[1]), AxisType[sys.argv[2]], LAYOUTS[sys.argv[3]]
params, grads = draw(0), draw(1)
expected = train(tx, params, grads, tx.init(params))
mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axes, axes))
with jax.set_mesh(mesh):
    if sys.argv[3] == "tensor":
        tx = transform(sys.argv[1])  # as in a program that sets its mesh first of all
    place = jax.tree.map(lambda p: NamedSharding(mesh, p), layout, is_leaf=lambda x: isinstance(x, P))
    params, grads = jax.device_put(params, place), jax.device_put(grads, place)
    for init in (tx.init, jax.jit(tx.init)):
        state = init(params)
        differing = []
        def check(x, w, exact=True):
            if x.shape == w.shape and not (x.sharding.is_equivalent_to(w.sharding, x.ndim) or (not exact and finer(x, w))):
                differing.append((x.shape, str(x.sharding), str(w.sharding)))
            return x
        optax.tree.map_params(tx, check, state, params)
        assert not differing, (init, differing)
    found = train(tx, params, grads, state)
    exact = axes == AxisType.Explicit
    optax.tree.map_params(tx, lambda x, w: check(x, w, exact), found[1], params)
    jax.tree.map(lambda x, w: check(x, w, exact), found[0], params)
    assert not differing, differing
    shapes_of = jax.eval_shape(tx.init, params)
    assert jax.tree.structure(shapes_of) == jax.tree.structure(state)
def alike(a, b):
    # What rounding leaves of the entries of an inverse root is a part of the largest, and that may be a hundred.
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * max(1.0, np.abs(b).max(initial=0)))
jax.tree.map(alike, found, expected)
print("same")
"""


def case(*values):
    return pytest.param(*values, marks=[] if values in FAST else [pytest.mark.slow, pytest.mark.compiles])


FAST = (("loaded", "Auto", "fsdp"), ("loaded", "Explicit", "tensor"))


@pytest.mark.parametrize(
    ("name", "axes", "layout"),
    [case(*values) for values in itertools.product(("loaded", "adafactor"), ("Auto", "Explicit"), ("fsdp", "tensor"))],
)
def test_over_eight_devices_as_on_one(name, axes, layout):
    command = [sys.executable, "-c", textwrap.dedent(CODE), name, axes, layout]
    found = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert found.returncode == 0, found.stderr[-3000:]
    assert found.stdout.strip().endswith("same")


BOXED = """
import sys
import jax, jax.numpy as jnp, numpy as np, optax
import flax.linen as nn
from flax import nnx
from jax.sharding import AxisType, PartitionSpec as P
import lopt

mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
normal, zeros, inputs = nn.initializers.lecun_normal(), nn.initializers.zeros, jnp.ones((16, 12))
tx = lopt.load("lopt-direction", learning_rate=0.01)

def check(state):
    whole = [x for x in jax.tree.leaves(state) if x.shape == (12, 8)]
    assert len(whole) > 3 and all(x.sharding.spec == P("x", "y") for x in whole), [x.sharding for x in whole]

def linen():
    net = nn.Dense(8, kernel_init=nn.with_partitioning(normal, ("x", "y")), bias_init=nn.with_partitioning(zeros, ("y",)))
    def made(key):
        params = net.init(key, inputs)
        return params, tx.init(params)
    def step(carry, _):
        params, state = carry
        grads = jax.grad(lambda params: jnp.mean(jnp.square(net.apply(params, inputs) - 1)))(params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None
    key = jax.random.key(0)
    specs = nn.get_partition_spec(jax.eval_shape(made, key))
    place = jax.tree.map(lambda spec: jax.NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P))
    params, state = jax.jit(made, out_shardings=place)(key)
    check(state)
    (params, state), _ = jax.jit(lambda *carry: jax.lax.scan(step, carry, length=3))(params, state)
    return nn.unbox(params)["params"]

def nnx_():
    class Net(nnx.Module):
        def __init__(self):
            kernel, bias = nnx.with_partitioning(normal, ("x", "y")), nnx.with_partitioning(zeros, ("y",))
            self.layer = nnx.Linear(12, 8, kernel_init=kernel, bias_init=bias, rngs=nnx.Rngs(0))
    @nnx.jit
    def made():
        net = Net()
        state = nnx.state(found := nnx.Optimizer(net, tx, wrt=nnx.Param))
        nnx.update(found, jax.lax.with_sharding_constraint(state, nnx.get_partition_spec(state)))
        return net, found
    @nnx.jit
    def step(net, optimizer):
        optimizer.update(net, nnx.grad(lambda net: jnp.mean(jnp.square(net.layer(inputs) - 1)))(net))
    with jax.set_mesh(mesh):
        net, optimizer = made()
        check(nnx.state(optimizer))
        for _ in range(3):
            step(net, optimizer)
    return nnx.to_pure_dict(nnx.state(net, nnx.Param))["layer"]

found = {"linen": linen, "nnx": nnx_}[sys.argv[1]]()
if sys.argv[1] == "linen":
    params = nn.Dense(8, kernel_init=normal).init(jax.random.key(0), inputs)["params"]
else:
    net = nnx.Linear(12, 8, kernel_init=normal, rngs=nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(net, nnx.Param))
state = tx.init(params)
for _ in range(3):
    grads = jax.grad(lambda w: jnp.mean(jnp.square(inputs @ w["kernel"] + w["bias"] - 1)))(params)
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), dict(found), params)
print("same")
"""


@pytest.mark.slow
@pytest.mark.compiles
@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_axes_that_flax_names(library):
    """State of a weight's shape has the names of its axes; rows and columns, which have fewer, none."""
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count=8 {os.environ.get('XLA_FLAGS', '')}"}
    command = [sys.executable, "-c", BOXED, library]
    found = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=environment)
    assert found.returncode == 0, found.stderr[-3000:]
    assert found.stdout.strip().endswith("same")
