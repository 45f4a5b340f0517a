"""Settings for every test and every example in a docstring: strict promotion, two CPU devices, compiled programs kept.

Most of the time goes into compiling, so programs are kept between sessions and shared with the processes that tests start. They
are the same bits: what is trained by a program from the cache equals what is trained by one compiled afresh. To do without:
`JAX_ENABLE_COMPILATION_CACHE=false make test`.
"""

import atexit
import os
import pathlib
import platform
import shutil
import tempfile

# In the environment, before jax is imported, so that the processes that tests start have them too.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(pathlib.Path(__file__).resolve().parent / ".pytest_cache" / "jax" / platform.node()),  # machine code is for one machine
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # `make test-gpu` names the accelerator
os.environ.setdefault("LOPT_NATIVE", "off")  # a script that a test calls in its own process leaves no kernel to the next test
# Workers, and the processes that tests start, share the directory of the first process.
if "PYTEST_XDIST_WORKER" not in os.environ:
    # Preprocessed data of this session alone: the user's is neither written, nor trusted when the code that made it has changed.
    os.environ["LOPT_CACHE_DIR"] = tempfile.mkdtemp(prefix="lopt-tests-")
    atexit.register(shutil.rmtree, os.environ["LOPT_CACHE_DIR"], ignore_errors=True)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

jax.config.update("jax_num_cpu_devices", 2)  # so that sharding over a mesh is tested on any machine
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs an accelerator where there is none."""
    if item.get_closest_marker("gpu") and jax.default_backend() == "cpu":
        pytest.skip("needs an accelerator; `make test-gpu` uses the one of this machine")


@pytest.fixture(autouse=True)
def names_in_examples(doctest_namespace: dict[str, object]) -> None:
    """Examples may use these names without importing them."""
    doctest_namespace.update(jax=jax, jnp=jnp, np=np)
