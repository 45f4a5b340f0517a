"""Several processes as one: what only one of them does, and arrays that are spread over all.

Every process runs the same program. Particles are sharded over the devices of all; theta and all that is reported are the same
everywhere. The run directory is one that all processes can read.
"""

import dataclasses
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed as jax_distributed
from jax.experimental import multihost_utils

from lopt.config.errors import LoptError
from lopt.layers.kernels.ffi import available_cores
from lopt.runtime.meeting import address_of, meet
from lopt.symmetry.spec import PyTree

T = TypeVar("T")
_FOREVER = 24 * 3_600_000  # milliseconds
_barriers = itertools.count()  # each has a name of its own
_SEEN_WITHIN = 10.0  # seconds in which a network file system shows what another machine has written


@dataclasses.dataclass(frozen=True)
class ProcessConfig:
    """This process among those of the run; nothing of it is part of the experiment."""

    coordinator: str | None = None
    """Address and port of process 0, such as 10.0.0.1:1234; `auto`: Slurm, Open MPI, Kubernetes or the like say it, and the other two;
    None: a single process."""
    num_processes: int | None = None
    """How many processes there are."""
    process_id: int | None = None
    """This one's number, from 0."""
    local_devices: int | None = None
    """CPU devices of this process; None: one for each core that it may use. Fewer, where several processes share a machine."""
    heartbeat_timeout: int = 60
    """Seconds after which a process that has gone silent, or has not come at the start, is given up, and with it the run."""

    @property
    def is_one_of_many(self) -> bool:
        return (self.coordinator, self.num_processes, self.process_id) != (None, None, None)


class PeerError(LoptError, RuntimeError):
    """Another process of the run has stopped, or cannot be reached."""


class DisagreementError(LoptError, ValueError):
    """The processes of a run were not started alike; the message says in what they differ."""


def end_at_once(message: str) -> NoReturn:
    """Print a message and end this process with status 1, without leaving the other processes in good order: one of them is gone.

    An ordinary exit would wait for it, and then abort with a stack of XLA's.
    """
    sys.stdout.flush()
    print(message, file=sys.stderr, flush=True)
    os._exit(1)


def use_all_cores(devices: int | None = None) -> None:
    """Make a JAX device of each CPU core, or so many, so that inner trainings spread over them; call before JAX is first used."""
    if devices is not None and devices < 1:
        raise ValueError(f"local_devices must be at least 1, got {devices}")
    jax.config.update("jax_num_cpu_devices", available_cores() if devices is None else devices)


def join_processes(config: ProcessConfig) -> None:
    """Join the other processes of the run; call before JAX is first used.

    Raises:
      ValueError: if only some of coordinator, num_processes and process_id are given, they do not fit together, or nothing says what
        they are where they are to be found out.
      MeetingError: if another process does not come within the heartbeat's timeout, or the port is taken; says which.
    """
    given = {name: getattr(config, name) for name in ("coordinator", "num_processes", "process_id")}
    names = ("initialization_timeout", "heartbeat_timeout_seconds", "shutdown_timeout_seconds")
    timeouts: Any = dict.fromkeys(names, config.heartbeat_timeout)
    if config.coordinator == "auto":
        if (config.num_processes, config.process_id) != (None, None):
            raise ValueError("with --coordinator auto, leave out --num-processes and --process-id")
        use_all_cores(config.local_devices)
        jax.distributed.initialize(**timeouts)
        return
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise ValueError(
            f"several processes need --coordinator HOST:PORT, --num-processes and --process-id; {' and '.join(missing)} is missing"
        )
    if not 0 <= given["process_id"] < given["num_processes"]:
        raise ValueError(
            f"process_id must be from 0 to num_processes - 1 = {given['num_processes'] - 1}, got {given['process_id']}"
        )
    address_of(given["coordinator"])
    use_all_cores(config.local_devices)
    meet(given["coordinator"], given["num_processes"], given["process_id"], config.heartbeat_timeout)
    jax.distributed.initialize(config.coordinator, config.num_processes, config.process_id, **timeouts)


def even_devices(particles: int) -> list[Any]:
    """As many devices as divide the particles evenly, the same number from every process.

    Raises:
      ValueError: if the particles do not divide over the processes.
    """
    processes = jax.process_count()
    if particles % processes:
        raise ValueError(f"{particles} particles cannot be split over {processes} processes evenly: change estimator.particles")
    local = [[device for device in jax.devices() if device.process_index == process] for process in range(processes)]
    count = max(n for n in range(1, min(map(len, local)) + 1) if particles // processes % n == 0)
    return [device for devices in local for device in devices[:count]]


@contextmanager
def naming_lost_peers() -> Iterator[None]:
    """While inside, an error of JAX that several processes can only have if one of them is gone says so.

    Raises:
      PeerError: instead of JAX's.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # What fails while an array is fetched is a ValueError, with the words of the library that lets CPUs talk to each other.
        if jax.process_count() == 1 or (isinstance(error, ValueError) and "gloo" not in str(error).lower()):
            raise
        reason = str(error).partition("\n")[0]
        raise PeerError(
            f"process {jax.process_index()} has lost another of the {jax.process_count()} processes of the run ({reason}). Start all of "
            "them again: they go on from the newest checkpoint"
        ) from error


def is_main() -> bool:
    """Whether this process is the one that writes files and shows progress."""
    return jax.process_index() == 0


def on_host(tree: PyTree) -> PyTree:
    """The arrays of a pytree as numpy arrays, whole in every process, whichever devices of whichever process hold them.

    Any other program may take them: they are tied to no device. Keys stay keys. All processes must call it together.
    """

    def gather(leaf: jax.Array) -> Any:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(gather(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        if leaf.is_fully_addressable or leaf.is_fully_replicated:
            return np.asarray(leaf)
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(gather, tree)


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process. All must call it together."""
    return flag if jax.process_count() == 1 else bool(np.any(_gather(np.asarray(flag))))


def number_of_main(value: float) -> np.float32:
    """Process 0's value, in every process: what decides must be the same everywhere, to the last bit. All must call it together."""
    if jax.process_count() == 1:
        return np.float32(value)
    wait_for_all()
    return _gather(np.asarray(value, np.float32))[0]


def wait_for_all() -> None:
    """Return when every process has come here, however long it takes: collectives give up after 30 s.

    One process may have a kernel to compile, or a slower processor. One that has died is noticed by its heartbeat.
    """
    if jax.process_count() > 1:
        client: Any = jax_distributed.global_state.client  # what jax.distributed has connected; there is no public way to it
        client.wait_at_barrier(f"lopt {next(_barriers)}", timeout_in_ms=_FOREVER)


def main_does(what: Callable[[], T]) -> T | None:
    """Have process 0 do something while the others wait; what it returns there, None elsewhere. All must call it together.

    Raises:
      Exception: what it raised, in process 0.
      PeerError: in the others, if it raised.
    """
    if jax.process_count() == 1:
        return what()
    done, failure = None, None
    if is_main():
        try:
            done = what()
        except Exception as error:
            failure = error
    said = _texts("" if failure is None else f"{type(failure).__name__}: {failure}")[0]
    if said:
        _part()
    if failure is not None:
        raise failure
    if said:
        raise PeerError(f"process 0 cannot go on: {said}")
    return done


def check_sees(file: Path) -> None:
    """Raise `PeerError`, in all processes, unless each sees this file of process 0's; what is written in it tells it from others.

    All must call it together.
    """
    if jax.process_count() == 1:
        return
    wanted, deadline = _texts(_read(file))[0], time.monotonic() + _SEEN_WITHIN
    while _read(file) != wanted and time.monotonic() < deadline:
        time.sleep(0.2)
    blind = [index for index, seen in enumerate(_texts(str(_read(file) == wanted))) if seen != "True"]
    if blind:
        _part()
        raise PeerError(
            f"{_listing(blind)} not see the run directory {file.parent} of process 0: it must lie on a file system that all of them share"
        )


def check_same(said: Mapping[str, str]) -> None:
    """Raise unless every process says the same; what differs would train to a theta of no config, without an error.

    All must call it together.

    Args:
      said: what is to be the same -> its value, as text.

    Raises:
      DisagreementError: in all processes, naming what differs, and where.
    """
    if jax.process_count() == 1:
        return
    ours, *others = map(json.loads, _texts(json.dumps(dict(said))))
    for index, theirs in enumerate(others, start=1):
        names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
        if names:
            _part()
            listing = "; ".join(f"{name} is {theirs.get(name)} there and {ours.get(name)} in process 0" for name in names[:5])
            more = f"; and {len(names) - 5} more" if len(names) > 5 else ""
            raise DisagreementError(
                f"process {index} is not of the same run as process 0: {listing}{more}. Start all of them with the same arguments, code "
                "and packages"
            )


def _part() -> None:
    """Leave the other processes, which leave too, so that each may end when and as it likes."""
    jax.distributed.shutdown()


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:  # not there, or not to be looked at: not seen
        return ""


def _listing(processes: Sequence[int]) -> str:
    numbers = " and ".join(map(str, processes))
    return f"process {numbers} does" if len(processes) == 1 else f"processes {numbers} do"


def _texts(text: str) -> list[str]:
    """The texts of all processes."""
    data = text.encode()
    wait_for_all()
    lengths = _gather(np.asarray(len(data), np.int32))
    padded = np.zeros(max(1, int(lengths.max())), np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    return [row[:length].tobytes().decode() for row, length in zip(_gather(padded), lengths, strict=True)]


def _gather(values: np.ndarray) -> np.ndarray:
    """The arrays of all processes, which have one shape, [processes, ...], by the first device of each: they need not have as many."""
    firsts = [next(d for d in jax.devices() if d.process_index == index) for index in range(jax.process_count())]
    mesh = jax.sharding.Mesh(np.array(firsts), ("processes",))
    split, whole = (jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)) for axes in (("processes",), ()))
    own = jax.device_put(values[None], firsts[jax.process_index()])
    spread = jax.make_array_from_single_device_arrays((len(firsts), *values.shape), split, [own])
    return np.asarray(jax.jit(_identity, out_shardings=whole)(spread).addressable_data(0))


def _identity(x: jax.Array) -> jax.Array:
    return x
