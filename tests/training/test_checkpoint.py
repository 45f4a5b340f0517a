import json
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lopt.symmetry.spec import named_leaves
from lopt.training import checkpoint
from lopt.training.checkpoint import CheckpointError


def small_state(step: int) -> dict:
    return {"theta": {"alpha": jnp.full((3,), step, jnp.float32)}, "particles": jnp.full((4, 5), step, jnp.float32)}


@jax.tree_util.register_pytree_with_keys_class
class TwoNames:
    """An attribute and an entry that are both called a."""

    def __init__(self, attribute, entry):
        self.parts = attribute, entry

    def tree_flatten_with_keys(self):
        keys = jax.tree_util.GetAttrKey("a"), jax.tree_util.DictKey("a")
        return tuple(zip(keys, self.parts, strict=True)), None

    @classmethod
    def tree_unflatten(cls, _, parts):
        return cls(*parts)


def bits(leaf) -> tuple:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return str(leaf.dtype), bits(jax.random.key_data(leaf))
    return str(leaf.dtype), np.shape(leaf), np.asarray(leaf).tobytes()


def assert_same_bits(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (name, x), (_, y) in zip(named_leaves(a), named_leaves(b), strict=True):
        assert bits(x) == bits(y), name


def files(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def test_no_checkpoint(tmp_path):
    assert checkpoint.steps(tmp_path) == []
    assert checkpoint.restore(tmp_path, small_state(0)) is None
    with pytest.raises(CheckpointError, match=f"no checkpoint in {tmp_path}/checkpoints"):
        checkpoint.load_theta(tmp_path)


def rich_state() -> dict:
    """Everything that a pytree of a run can hold."""
    theta = {
        "trunk": [{"kernel": jnp.linspace(0.0, 1.0, 12).reshape(3, 4), "bias": jnp.zeros(4)}, {}],
        "half": jnp.asarray([1.0, -0.0, jnp.nan, jnp.inf], jnp.bfloat16),
        "pair": (jnp.float32(0.1), None),
        "empty": {},
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.constant_schedule(1e-3), mu_dtype=jnp.bfloat16))
    floats = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), theta)
    return {
        "theta": theta,
        "outer_state": optimizer.init(floats),
        "estimator_state": {
            "nan_payload": jnp.asarray(np.array([0x7FC00001, 0xFFC12345, 0x80000000], np.uint32).view(np.float32)),
            "count": jnp.asarray(-7, jnp.int32),
            "bytes": jnp.arange(5, dtype=jnp.uint8),
            "small": jnp.arange(-2, 3, dtype=jnp.int8),
            "done": jnp.asarray([True, False]),
            "none_left": jnp.zeros((0, 3)),
            "float16": jnp.ones((2, 1), jnp.float16),
            "float8": jnp.ones((2, 1), jnp.float8_e4m3fn),
            "empty": ((), [], {}, None),
        },
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(1, impl="rbg"), (2, 3)),
    }


def test_round_trip_is_exact_to_the_bit(tmp_path):
    state = rich_state()
    assert checkpoint.save(tmp_path, 12, state) == tmp_path / "checkpoints" / "00000012.safetensors"
    for template in (jax.tree.map(lambda leaf: leaf.copy(), state), jax.eval_shape(lambda: state)):
        restored = checkpoint.restore(tmp_path, template)
        assert restored is not None
        assert restored[0] == 12
        assert_same_bits(restored[1], state)
    theta = checkpoint.load_theta(tmp_path)
    assert_same_bits(theta, state["theta"])
    assert isinstance(theta["half"], jax.Array)


def test_host_leaves_stay_on_the_host(tmp_path):
    state = {"theta": {}, "array": np.arange(3, dtype=np.int64), "step": 5, "rate": 0.1, "flag": True}
    checkpoint.save(tmp_path, 1, state)
    _, restored = checkpoint.restore(tmp_path, state) or (0, {})
    assert {name: type(value) for name, value in restored.items()} == {name: type(value) for name, value in state.items()}
    assert restored["array"].tobytes() == state["array"].tobytes()
    assert restored["array"].flags.writeable
    assert (restored["step"], restored["rate"], restored["flag"]) == (5, 0.1, True)


def test_the_file_is_readable_by_others(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    state = {"theta": {"alpha": jnp.arange(3.0), "count": jnp.asarray(2, jnp.int8)}, "done": jnp.asarray([True])}
    loaded = safetensors.load_file(checkpoint.save(tmp_path, 1, state))
    assert sorted(loaded) == ["done", "theta/alpha", "theta/count"]
    for name, leaf in named_leaves(state):
        assert bits(loaded[name]) == bits(leaf)


def test_keys_with_a_slash_are_their_own(tmp_path):
    theta = {"a/b": jnp.zeros(1), "a": {"b": jnp.ones(1)}, "a%2Fb": jnp.full(1, 2.0)}
    checkpoint.save(tmp_path, 1, {"theta": theta})
    _, restored = checkpoint.restore(tmp_path, {"theta": jax.tree.map(jnp.zeros_like, theta)})
    for found in (restored["theta"], checkpoint.load_theta(tmp_path)):
        assert jax.tree.map(float, jax.tree.map(jnp.sum, found)) == {"a/b": 0.0, "a": {"b": 1.0}, "a%2Fb": 2.0}


def test_a_resumed_run_equals_an_unbroken_one(tmp_path):
    optimizer = optax.adam(1e-2)

    traces = []

    def step(state):
        traces.append(state)
        key = jax.random.fold_in(state["key"], state["step"])
        gradient = jax.tree.map(lambda leaf: leaf + jax.random.normal(key, leaf.shape), state["theta"])
        with jax.numpy_dtype_promotion("standard"):  # optax's Adam divides a float by an int
            updates, outer = optimizer.update(gradient, state["outer"], state["theta"])
        return {**state, "theta": optax.apply_updates(state["theta"], updates), "outer": outer, "step": state["step"] + 1}

    step = jax.jit(step, donate_argnums=0)

    def start():
        theta = {"w": jnp.linspace(-1.0, 1.0, 7)}
        return {"theta": theta, "outer": optimizer.init(theta), "key": jax.random.key(0), "step": jnp.asarray(0, jnp.int32)}

    unbroken = start()
    for _ in range(6):
        unbroken = step(unbroken)
    broken = start()
    for _ in range(3):
        broken = step(broken)
    checkpoint.save(tmp_path, 3, broken)
    done, broken = checkpoint.restore(tmp_path, start()) or (0, {})
    for _ in range(done, 6):
        broken = step(broken)
    assert_same_bits(broken, unbroken)
    assert len(traces) == 1, "a restored state must not trace the step anew"


def test_leaves_go_to_the_devices_of_the_template(tmp_path):
    mesh = jax.make_mesh((2,), ("particles",))
    sharded, replicated = NamedSharding(mesh, PartitionSpec("particles")), NamedSharding(mesh, PartitionSpec())
    state = {
        "theta": {"w": jax.device_put(jnp.arange(3.0), replicated)},
        "particles": jax.device_put(jnp.arange(8.0).reshape(4, 2), sharded),
        "keys": jax.device_put(jax.random.split(jax.random.key(0), 4), sharded),
        "second": jax.device_put(jnp.ones(2), jax.devices()[1]),
        "anywhere": jnp.ones(2),
    }
    checkpoint.save(tmp_path, 1, state)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
    for template in (state, shapes):
        _, restored = checkpoint.restore(tmp_path, template) or (0, {})
        assert_same_bits(restored, state)
        for (name, leaf), (_, original) in zip(named_leaves(restored), named_leaves(state), strict=True):
            assert leaf.sharding == original.sharding, name
    _, restored = checkpoint.restore(tmp_path, state) or (0, {})
    assert not restored["anywhere"].committed  # so that it may still meet arrays on both devices
    assert (jax.jit(jnp.multiply)(restored["particles"], restored["anywhere"][None])).sharding.is_equivalent_to(sharded, 2)
    unsharded = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    _, restored = checkpoint.restore(tmp_path, unsharded) or (0, {})
    assert_same_bits(restored, state)
    assert restored["particles"].sharding.device_set == {jax.devices()[0]}


def test_theta_loads_with_another_number_of_devices(tmp_path):
    sharding = NamedSharding(jax.make_mesh((2,), ("d",)), PartitionSpec("d"))
    checkpoint.save(tmp_path, 4, {"theta": {"w": [jax.device_put(jnp.arange(4.0), sharding)]}, "rest": jnp.zeros(2)})
    code = """
        import sys, jax
        jax.config.update("jax_num_cpu_devices", 3)
        from lopt.training.checkpoint import load_theta
        theta = load_theta(sys.argv[1])
        print(len(jax.devices()), theta["w"][0].tolist(), list(theta))
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.strip() == "3 [0.0, 1.0, 2.0, 3.0] ['w']"


def test_old_checkpoints_are_deleted(tmp_path):
    for step in (10, 20, 30, 40):
        checkpoint.save(tmp_path, step, small_state(step), keep=2)
    assert checkpoint.steps(tmp_path) == [30, 40]
    assert checkpoint.load_theta(tmp_path)["alpha"][0] == 40
    assert checkpoint.load_theta(tmp_path, step=30)["alpha"][0] == 30
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 20 in .*those of steps \[30, 40\]"):
        checkpoint.load_theta(tmp_path, step=20)
    with pytest.raises(ValueError, match="keep is 0"):
        checkpoint.save(tmp_path, 50, small_state(50), keep=0)


def test_a_save_never_deletes_itself_or_what_lies_ahead(tmp_path):
    for step in (10, 20, 30):
        checkpoint.save(tmp_path, step, small_state(step))
    checkpoint.save(tmp_path, 15, small_state(15), keep=1)
    assert checkpoint.steps(tmp_path) == [15, 20, 30]


def test_a_step_can_be_saved_again(tmp_path):
    checkpoint.save(tmp_path, 10, small_state(1))
    checkpoint.save(tmp_path, 10, small_state(2))
    assert files(tmp_path) == ["00000010.safetensors"]
    assert checkpoint.load_theta(tmp_path)["alpha"][0] == 2


def test_what_a_killed_save_left_is_ignored_and_deleted(tmp_path):
    path = checkpoint.save(tmp_path, 10, small_state(10))
    leftover = path.with_name(".00000020.safetensors.123.tmp")
    leftover.write_bytes(path.read_bytes()[:100])
    path.with_name("notes.txt").write_text("mine")
    assert checkpoint.steps(tmp_path) == [10]
    assert (checkpoint.restore(tmp_path, small_state(0)) or (0, {}))[0] == 10
    assert leftover.exists()
    checkpoint.save(tmp_path, 30, small_state(30))
    assert files(tmp_path) == ["00000010.safetensors", "00000030.safetensors", "notes.txt"]


def test_any_flipped_bit_is_found(tmp_path):
    checkpoint.save(tmp_path, 10, small_state(10))
    path = checkpoint.save(tmp_path, 20, small_state(20))
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in range(0, len(content), 2):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.warns(RuntimeWarning, match=r"00000020\.safetensors is (damaged|not a checkpoint)"):
            step, state = checkpoint.restore(tmp_path, small_state(0)) or (0, {})
        assert step == 10
        assert state["particles"][0, 0] == 10


@pytest.mark.parametrize("change", [lambda c: c[:-1], lambda c: c[:100], lambda c: c[:5], lambda c: b"", lambda c: c + b"\0"])
def test_a_file_of_another_length_is_found(tmp_path, change):
    checkpoint.save(tmp_path, 10, small_state(10))
    path = checkpoint.save(tmp_path, 20, small_state(20))
    path.write_bytes(change(path.read_bytes()))
    with pytest.warns(RuntimeWarning, match=r"00000020\.safetensors"):
        assert checkpoint.load_theta(tmp_path)["alpha"][0] == 10
    with pytest.raises(CheckpointError, match=r"00000020\.safetensors"):
        checkpoint.load_theta(tmp_path, step=20)


def test_no_usable_checkpoint_says_what_to_do(tmp_path):
    for step in (10, 20):
        path = checkpoint.save(tmp_path, step, small_state(step))
        path.write_bytes(path.read_bytes()[:-4])
    with (
        pytest.warns(RuntimeWarning, match="damaged"),
        pytest.raises(CheckpointError, match=f"none of the 2 checkpoints in {tmp_path}/checkpoints can be used.*backup, or move"),
    ):
        checkpoint.restore(tmp_path, small_state(0))


def test_a_checkpoint_of_another_format_is_named(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_FORMAT", "lopt-checkpoint-9")
        checkpoint.save(tmp_path, 10, small_state(10))
    with pytest.raises(CheckpointError, match="has the format 'lopt-checkpoint-9'; this version of lopt reads"):
        checkpoint.load_theta(tmp_path, step=10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"particles": jnp.zeros((4, 6))}, r"leaf 'particles' is float32\[4, 5\] in .*needs float32\[4, 6\]"),
        ({"particles": jnp.zeros((4, 5), jnp.int32)}, r"leaf 'particles' is float32\[4, 5\] in .*needs int32\[4, 5\]"),
        ({"particles": jax.random.key(0)}, r"leaf 'particles' is float32\[4, 5\] in .*needs key<fry>\[\]"),
        ({"key": jax.random.key(0, impl="rbg")}, r"leaf 'key' is key<fry>\[\] in .*needs key<rbg>\[\]"),
        ({"other": jnp.zeros(1)}, r"00000010\.safetensors does not hold the state.*it lacks \['other'\]"),
        ({"theta": {}}, r"it also has \['theta/alpha'\]"),
    ],
)
def test_a_template_that_does_not_fit_names_the_leaf(tmp_path, change, message):
    state = {**small_state(10), "key": jax.random.key(0)}
    checkpoint.save(tmp_path, 10, state)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.restore(tmp_path, {**state, **change})


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"alpha": jnp.zeros(1)}, r"no entry 'theta'; its entries are \['alpha'\]"),
        ({"theta": {"a": np.zeros(1, np.complex128)}}, "leaf 'theta/a' has dtype complex128"),
        ({"theta": {"a": "text"}}, "leaf 'theta/a' has dtype <U4"),
        ({"theta": {"a": {1: jnp.zeros(1)}}}, "'theta/a' is a dict: theta must be made of dicts with string keys"),
        ({"theta": {"a": optax.EmptyState()}}, "'theta/a' is a EmptyState"),
        ({"theta": jnp.zeros(1), "more": TwoNames(jnp.ones(1), jnp.ones(1))}, "both have the path 'more/a'"),
    ],
)
def test_a_state_that_cannot_be_saved_names_the_leaf(tmp_path, state, message):
    with pytest.raises(ValueError, match=message):
        checkpoint.save(tmp_path, 1, state)


def test_unwritable_directory(tmp_path):
    (tmp_path / "run").write_text("a file is in the way")
    with pytest.raises(CheckpointError, match=r"cannot save the checkpoint of step 1: .*run.*; there is no checkpoint yet"):
        checkpoint.save(tmp_path / "run", 1, small_state(1))
    (tmp_path / "checkpoints").write_text("here too")
    with pytest.raises(CheckpointError, match=r"cannot save the checkpoint of step 1: .*checkpoints"):
        checkpoint.save(tmp_path, 1, small_state(1))


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path):
    checkpoint.save(tmp_path, 10, small_state(10))
    large = {"theta": {}, "particles": jnp.zeros(2**18)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, hard))  # a write fails halfway through the file, as on a full disk
    try:
        with pytest.raises(CheckpointError, match=r"cannot save the checkpoint of step 20: .*checkpoint of step 10 is intact"):
            checkpoint.save(tmp_path, 20, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(tmp_path) == ["00000010.safetensors"]
    assert (checkpoint.restore(tmp_path, small_state(0)) or (0, {}))[0] == 10


# Children are forked before JAX has started any thread, and their states are NumPy arrays, so that it starts none. Each one saves
# until it is killed, and writes the step to a pipe after a save has returned.
KILLER = """
    import json, os, random, signal, sys, time
    import numpy as np
    from lopt.training import checkpoint

    def state(step):
        return {"theta": {"w": np.full(100_000, step, np.float32)}, "particles": np.full((300, 500), step, np.float32)}

    def check(run_dir):
        found = checkpoint.restore(run_dir, state(0))
        if found is None:
            return 0
        step, restored = found
        assert all((leaf == step).all() for leaf in (restored["theta"]["w"], restored["particles"])), step
        return step

    def die_at(count):
        # SIGKILL just before the count-th of the system calls that change the directory.
        calls = 0
        def dying(function):
            def wrapped(*args, **kwargs):
                nonlocal calls
                if calls == count:
                    os.kill(os.getpid(), signal.SIGKILL)
                calls += 1
                return function(*args, **kwargs)
            return wrapped
        for name in ("replace", "fsync", "unlink", "open", "mkdir"):
            setattr(os, name, dying(getattr(os, name)))

    def forked(run_dir, saves, count=None, kill_after=None):
        # The last step whose save has returned in a child, and whether the child was killed.
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            status = 1
            try:
                first = check(run_dir) + 1
                if count is not None:
                    die_at(count)
                os.write(writing, b"ready\\n")
                for step in range(first, first + saves):
                    checkpoint.save(run_dir, step, state(step), keep=2)
                    os.write(writing, f"{step}\\n".encode())
                status = 0
            finally:
                os._exit(status)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            assert pipe.readline() == "ready\\n"
            returned = []
            for line in pipe:
                returned.append(int(line))
                if len(returned) == kill_after:
                    time.sleep(rng.uniform(0.0, 0.02))
                    os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) or status == 0, status
        return (returned or [0])[-1], os.WIFSIGNALED(status)

    root, rng, report = sys.argv[1], random.Random(0), {"points": 0, "steps": []}
    for count in range(100):
        run_dir = f"{root}/point{count}"
        last, killed = forked(run_dir, saves=3, count=count)
        step = check(run_dir)
        assert last <= step <= last + 1, (count, last, step)
        if not killed:
            break
        forked(run_dir, saves=1)
        assert check(run_dir) == step + 1
        left = os.listdir(f"{run_dir}/checkpoints")
        assert len(left) <= 2 and not [name for name in left if name.endswith(".tmp")], left
        report["points"] += 1
    for _ in range(15):
        last, killed = forked(f"{root}/random", saves=10**6, kill_after=rng.randint(1, 3))
        step = check(f"{root}/random")
        assert killed and step >= last, (step, last)
        report["steps"].append(step)
    print(json.dumps(report))
"""


def test_sigkill_at_any_moment_leaves_a_complete_checkpoint(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLER), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert "looking for an earlier checkpoint" not in result.stderr  # none was ever found damaged
    report = json.loads(result.stdout)
    assert report["points"] >= 12  # at least 4 system calls in each of 3 saves
    assert len(report["steps"]) == 15
    assert checkpoint.load_theta(tmp_path / "random")["w"][0] == report["steps"][-1]
