"""The kernels in C++, made by the machine's own compiler the first time and kept beside compiled programs.

They are an option of a process, as the number of devices is: which is used changes the order of sums, not what is computed. A machine
without a compiler goes on with XLA's products.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import jax
import jaxlib.version

from lopt.config.caches import UntrustedCacheError, compilation_cache_dir, private_directory
from lopt.config.errors import LoptError
from lopt.config.files import replace_durably, write_atomically
from lopt.layers.kernels import ffi as native

SETTING = "LOPT_NATIVE"  # `off`: not even where there is a compiler
ARCHITECTURE = "LOPT_NATIVE_ARCH"  # for which processor the compiler makes them: its -march, of this machine if not set
SOURCES = Path(__file__).parent
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-shared", "-fPIC")  # a root is then one instruction
COMPILERS = ("c++", "g++", "clang++")
_TIMEOUT = 600  # seconds: ten are enough where nothing else runs
_registered: dict[str, native.Kernel] = {}  # by name, which XLA takes once


class NativeKernelError(LoptError, RuntimeError):
    """The kernels cannot be made; the message says why."""


def use_native_kernels() -> None:
    """Let kernels in C++ compute the pointwise layers of update networks on CPU; call before anything is traced.

    When one is first needed it is compiled, which takes some seconds, and from then on read from where compiled programs are kept
    (`lopt.config.caches`). `LOPT_NATIVE=off` leaves everything to XLA, and so does a machine without a compiler; a compiler that
    fails is warned of. `LOPT_NATIVE_ARCH` names another processor than this one to make it for, such as `x86-64-v3`.
    """
    native.use(_find)


def _find() -> native.Kernel | None:
    if os.environ.get(SETTING, "").lower() == "off" or find_compiler() is None:
        return None
    try:
        return load_kernels()
    except NativeKernelError as error:
        warnings.warn(f"{error}; going on without. {SETTING}=off does so without this warning", stacklevel=2)
        return None


def load_kernels() -> native.Kernel:
    """Make and load the kernels, and tell XLA of them.

    Raises:
      NativeKernelError: if there is no compiler, it fails, or what it has made cannot be loaded.
    """
    compiler = find_compiler()
    if compiler is None:
        raise NativeKernelError(
            f"the kernels need a C++ compiler: none of {', '.join(COMPILERS)} is on the path, nor named by $CXX"
        )
    name = f"lopt_{_identity(compiler)}"  # programs are kept under the name of what they call
    if name not in _registered:
        with tempfile.TemporaryDirectory() as scratch:
            library = open_library(make_library(compiler, _place(Path(scratch)) / f"{name}.so"))
        library.LoptHasBfloat16.restype = ctypes.c_bool
        made = native.Kernel(name, bool(library.LoptHasBfloat16()))
        for part, symbol in native.TARGETS.items():
            jax.ffi.register_ffi_target(made.target(part), jax.ffi.pycapsule(getattr(library, symbol)), platform="cpu")
        _registered[name] = made
    return _registered[name]


def _place(scratch: Path) -> Path:
    """Where kernels are kept: with compiled programs, unless these are not, or others could have put something there."""
    directory = compilation_cache_dir()
    try:
        return scratch if directory is None else private_directory(directory)
    except UntrustedCacheError as error:
        warnings.warn(f"the kernels are made anew and not kept: {error}", stacklevel=2)
    except OSError as error:
        warnings.warn(f"the kernels are not kept, as {directory} cannot be written ({error.strerror})", stacklevel=2)
    return scratch


def make_library(compiler: str, library: Path) -> Path:
    """Compile the kernels into a file, unless it is there and is what was written.

    Beside it lies the sha256 of what was written: a file that a power cut or a full disk has left empty or short is made again, as
    loading it could end the process, and going on without it would train to another theta.

    Raises:
      NativeKernelError: if the compiler fails, or the file cannot be written.
    """
    checksum = library.with_suffix(".sha256")
    try:
        if library.is_file() and checksum.is_file() and checksum.read_text() == _sha256(library):
            return library
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
            made = Path(scratch) / library.name
            _run([compiler, *flags(), "-isystem", jax.ffi.include_dir(), str(SOURCES / "kernels.cc"), "-o", str(made)])
            said = _sha256(made)
            # Another process may be at it too: whoever is last replaces it by the same.
            replace_durably(made, library)
            write_atomically(checksum, said.encode())
    except OSError as error:
        raise NativeKernelError(f"the kernels cannot be written to {library.parent} ({error.strerror})") from error
    return library


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def open_library(library: Path) -> ctypes.CDLL:
    """A library of kernels.

    Raises:
      NativeKernelError: if the file is none, or another.
    """
    try:
        found = ctypes.CDLL(str(library))
        _ = [getattr(found, symbol) for symbol in (*native.TARGETS.values(), "LoptHasBfloat16")]
    except (OSError, AttributeError) as error:
        raise NativeKernelError(f"{library} cannot be loaded ({error}): delete it, and it is made anew") from error
    return found


def flags() -> tuple[str, ...]:
    """What the compiler is told."""
    return (*FLAGS, f"-march={os.environ.get(ARCHITECTURE) or 'native'}")


def find_compiler() -> str | None:
    """The path of $CXX, or of the first compiler there is."""
    return next((found for name in (os.environ.get("CXX"), *COMPILERS) if name and (found := shutil.which(name))), None)


def _identity(compiler: str) -> str:
    """Names what the machine code depends on, beside the kind of processor that the directory is for."""
    version = _run([compiler, "--version"])
    sources = [path.read_text() for path in sorted(SOURCES.iterdir()) if path.suffix in (".cc", ".h")]
    parts = (*sources, version, jaxlib.version.__version__, *flags())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeKernelError(f"{command[0]} cannot be run ({error})") from error
    if done.returncode:
        said = "\n".join(done.stderr.strip().splitlines()[:3])
        raise NativeKernelError(f"{command[0]} cannot compile the kernels:\n{said}")
    return done.stdout
