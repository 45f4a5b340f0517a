"""How a program begins, and how it ends when something goes wrong.

An end is one line for what lopt refuses, file and line for a mistake in anybody's code.
"""

import argparse
import dis
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from lopt.config.errors import LoptError

DEBUG_HELP = "--debug shows the whole traceback of an error, in place of one line or of the part that is in your own files."
_PACKAGE = Path(__file__).resolve().parents[1]
_OWN = (_PACKAGE, _PACKAGE.with_name("tasks"), _PACKAGE.with_name("scripts"))  # the last two in a clone
_LIBRARIES = tuple({Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def prepare() -> None:
    """What a program does before it uses JAX: it keeps what it compiles, has kernels in C++, and makes a device of each core."""
    from lopt.layers.kernels.build import use_native_kernels  # here, as a wrong argument is to be answered at once
    from lopt.runtime.compilation_cache import use_compilation_cache
    from lopt.runtime.distributed import use_all_cores

    use_compilation_cache()
    use_native_kernels()
    use_all_cores()


def at_least(minimum: int) -> Callable[[str], int]:
    """The type of an option that is a whole number, not below a minimum."""

    def parse(text: str) -> int:
        if not text.isdecimal():
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {minimum}")
        if int(text) < minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}, got {text}")
        return int(text)

    return parse


def take_debug(argv: Sequence[str] | None) -> tuple[list[str], bool]:
    """The arguments (None: those of this process) without `--debug`, and whether it was among them."""
    given = list(sys.argv[1:] if argv is None else argv)
    return [argument for argument in given if argument != "--debug"], "--debug" in given


@contextmanager
def reporting_errors(prog: str, *, debug: bool = False) -> Iterator[None]:
    """Inside, what is wrong ends the program with status 1 and is said on standard error.

    What lopt raises on purpose is one line, `PROG: MESSAGE`. Any other error has its traceback, without the frames of libraries where
    others are left, so that a mistake in somebody's own task or rule shows its file and line.

    Args:
      prog: the program's name.
      debug: show every traceback, and all of it.

    Raises:
      SystemExit: in place of any `Exception`.
    """
    try:
        yield
    except Exception as error:
        sys.exit(said(prog, error, debug=debug))


def said(prog: str, error: Exception, *, debug: bool = False) -> str:
    """What a program says of an error as it ends; arguments as of `reporting_errors`."""
    if debug:
        return "".join(traceback.format_exception(error)).rstrip()
    if on_purpose(error):
        return f"{prog}: {error}"
    return f"{short_traceback(error)}\n{prog}: stopped by the error above; --debug shows all of its traceback"


def on_purpose(error: BaseException) -> bool:
    """Whether lopt itself says no: by an error of its own, by a `raise` in its code, or by a file that it could not use.

    What it raises because somebody else's code failed counts as theirs.
    """
    if isinstance(error, LoptError):
        return True
    if error.__cause__ is not None and any(map(_is_somebodys, _frames(error.__cause__.__traceback__))):
        return False
    frames = list(_frames(error.__traceback__))
    if not frames:
        return False
    if isinstance(error, OSError):  # raised by the standard library for whoever called it
        written = [frame for frame in frames if _is_own(frame) or _is_somebodys(frame)]
        return bool(written) and _is_own(written[-1])
    return _is_own(frames[-1]) and not isinstance(error, AssertionError) and _is_raise(frames[-1])


def short_traceback(error: BaseException) -> str:
    """The traceback without the frames of libraries, and without those of lopt where others are left."""
    found = traceback.TracebackException.from_exception(error)
    part: traceback.TracebackException | None = found
    while part is not None:
        frames = list(part.stack)
        users = [frame for frame in frames if _is_written_by_user(frame.filename)]
        written = [frame for frame in frames if not _is_under(frame.filename, _LIBRARIES) and frame.filename != __file__]
        part.stack = traceback.StackSummary.from_list(users or written or frames)
        part = part.__cause__ or (None if part.__suppress_context__ else part.__context__)
    return "".join(found.format()).rstrip()


def _frames(trace: TracebackType | None) -> Iterator[TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next


def _is_raise(frame: TracebackType) -> bool:
    """Whether the error left this frame by a `raise`, rather than by something that went wrong in it."""
    code = frame.tb_frame.f_code.co_code
    return dis.opname[code[frame.tb_lasti]] == "RAISE_VARARGS"


def _is_under(file: str, folders: tuple[Path, ...]) -> bool:
    return any(folder in Path(file).resolve().parents for folder in folders)


def _is_own(frame: TracebackType) -> bool:
    return _is_under(frame.tb_frame.f_code.co_filename, _OWN)


def _is_somebodys(frame: TracebackType) -> bool:
    return _is_written_by_user(frame.tb_frame.f_code.co_filename)


def _is_written_by_user(file: str) -> bool:
    return not file.startswith("<") and not _is_under(file, (*_OWN, *_LIBRARIES))
