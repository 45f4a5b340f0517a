"""Where the time of an outer step goes: operations as XLA runs them, added up by the part of the program that they come from."""

import os
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData

TRACE_FLAG = "--xla_cpu_enable_xprof_traceme=true"  # on CPU operations are recorded only with it; JAX must not have started
PARTS = (
    "task",
    "data",
    "features",
    "trunk",
    "last_layer",
    "newton_schulz",
    "inverse_roots",
    "optimizer",
)  # scopes in the code, inner ones first; else "estimator"

_OPERATION = re.compile(r"%?([\w.-]+) = (?:\([^)]*\)|\S+) [\w-]+\(.*?metadata=\{[^}]*?op_name=\"([^\"]*)\"")


def record_operations() -> None:
    """Have XLA record every operation on CPU; call before JAX is first used."""
    flags = os.environ.get("XLA_FLAGS", "")
    if TRACE_FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {TRACE_FLAG}".strip()


def part_of(scopes: str) -> str:
    """The part of the program that an operation belongs to, by the scopes in its name.

    Example:
      >>> part_of("jit(outer_step)/while/body/optimizer/features/mul"), part_of("jit(outer_step)/add")
      ('features', 'estimator')
    """
    found = set(re.split(r"[/()]", scopes))
    return next((part for part in PARTS if part in found), "estimator")


def shares(compiled: jax.stages.Compiled, run: Any) -> dict[str, Any]:
    """How the time of a compiled program divides over its parts.

    Args:
      compiled: the program; on CPU compiled after `record_operations`.
      run: `run()` calls it and waits.

    Returns:
      `shares`, part -> share of the time spent in operations, largest first, where what has no name is `unnamed` and a loop or a call
      counts for what it contains; `largest`, the ten operations that take most, as [name, part, share].

    Raises:
      RuntimeError: if no operation was recorded.
    """
    program = compiled.as_text() or ""
    scopes = dict(_OPERATION.findall(program))
    # A loop or a call counts for what it contains.
    names = set(re.findall(r"%?([\w.-]+) = ", program)) - set(
        re.findall(r"%?([\w.-]+) = .*? (?:while|conditional|call)\(", program)
    )
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory):
            run()
        found = next(Path(directory).rglob("*.xplane.pb"), None)
        planes = [] if found is None else list(ProfileData.from_file(str(found)).planes)
        seconds: Counter[str] = Counter()
        for plane in planes:
            for line in plane.lines:
                for event in line.events:
                    if event.name in names:
                        seconds[event.name] += event.duration_ns
    total = sum(seconds.values())
    if not total:
        raise RuntimeError("the profile holds no operation of the program: call record_operations() before JAX is first used")
    part = {name: part_of(scopes[name]) if name in scopes else "unnamed" for name in seconds}
    parts: Counter[str] = Counter()
    for name, duration in seconds.items():
        parts[part[name]] += duration
    largest = [[name, part[name], round(duration / total, 3)] for name, duration in seconds.most_common(10)]
    return {"shares": {part: round(duration / total, 3) for part, duration in parts.most_common()}, "largest": largest}
