"""Several processes as one: what only one of them does, and arrays that are spread over all.

Every process runs the same program. Particles are sharded over the devices of all; theta and all that is reported are the same
everywhere. The run directory is one that all processes can read.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from lopt.symmetry.spec import PyTree


@dataclasses.dataclass(frozen=True)
class ProcessConfig:
    """This process among those of the run; nothing of it is part of the experiment."""

    coordinator: str | None = None
    """Address and port of process 0, such as 10.0.0.1:1234; None: a single process, or what Slurm or Kubernetes say."""
    num_processes: int | None = None
    """How many processes there are."""
    process_id: int | None = None
    """This one's number, from 0."""
    heartbeat_timeout: int = 60
    """Seconds after which a process that has gone silent is given up, and with it the run."""


def join_processes(config: ProcessConfig) -> None:
    """Join the other processes of the run; call before JAX is first used.

    Raises:
      ValueError: if only some of coordinator, num_processes and process_id are given, or they do not fit together.
    """
    given = {name: getattr(config, name) for name in ("coordinator", "num_processes", "process_id")}
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise ValueError(
            f"several processes need --coordinator HOST:PORT, --num-processes and --process-id; {' and '.join(missing)} is missing"
        )
    if not 0 <= given["process_id"] < given["num_processes"]:
        raise ValueError(
            f"process_id must be from 0 to num_processes - 1 = {given['num_processes'] - 1}, got {given['process_id']}"
        )
    jax.distributed.initialize(
        config.coordinator,
        config.num_processes,
        config.process_id,
        heartbeat_timeout_seconds=config.heartbeat_timeout,
        shutdown_timeout_seconds=config.heartbeat_timeout,
    )


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
