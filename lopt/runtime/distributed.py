"""Several processes as one: what only one of them does, and arrays that are spread over all.

Every process runs the same program. Particles are sharded over the devices of all; theta and all that is reported are the same
everywhere. The run directory is one that all processes can read.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from lopt.config.errors import LoptError
from lopt.layers.kernels.ffi import available_cores
from lopt.symmetry.spec import PyTree


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
    """Seconds after which a process that has gone silent is given up, and with it the run."""

    @property
    def is_one_of_many(self) -> bool:
        return (self.coordinator, self.num_processes, self.process_id) != (None, None, None)


class PeerError(LoptError, RuntimeError):
    """Another process of the run has stopped."""


def use_all_cores(devices: int | None = None) -> None:
    """Make one CPU device of each core (or so many), so that particles spread over them; call before JAX is first used."""
    if devices is not None and devices < 1:
        raise ValueError(f"local_devices must be at least 1, got {devices}")
    jax.config.update("jax_num_cpu_devices", available_cores() if devices is None else devices)


def join_processes(config: ProcessConfig) -> None:
    """Join the other processes of the run; call before JAX is first used.

    Raises:
      ValueError: if only some of coordinator, num_processes and process_id are given, they do not fit together, or nothing says what
        they are where they are to be found out.
    """
    given = {name: getattr(config, name) for name in ("coordinator", "num_processes", "process_id")}
    timeouts: Any = {name: config.heartbeat_timeout for name in ("heartbeat_timeout_seconds", "shutdown_timeout_seconds")}
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
    use_all_cores(config.local_devices)
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
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
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

    Keys stay keys. All processes must call it together.
    """

    def gather(leaf: jax.Array) -> object:
        if leaf.is_fully_addressable:
            return leaf
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        if leaf.is_fully_replicated and not is_key:
            return np.asarray(leaf)
        if is_key:
            data = multihost_utils.process_allgather(jax.random.key_data(leaf), tiled=True)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))

    return tree if jax.process_count() == 1 else jax.tree.map(gather, tree)


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process. All must call it together."""
    return flag if jax.process_count() == 1 else bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def wait_for_all(what: str) -> None:
    """Return when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)
