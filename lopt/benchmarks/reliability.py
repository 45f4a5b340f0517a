"""What becomes of runs to which something happens: each attempt harms a run, starts it again, and compares it with one unharmed.

An attempt ends in one of three ways. `same`: theta, the best theta, the state of the outer optimizer and of all particles, and the metrics
are those of the unharmed run, bit for bit. `told`: a message or a warning names the file, or what is wrong with it. `lost`: neither.
"""

import dataclasses
import errno
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lopt.benchmarks.faults import Disk, PowerCut, at_call, full_disk
from lopt.benchmarks.options import KINDS
from lopt.training import checkpoint, metrics
from lopt.training.checkpoint import BEST_DIR, CHECKPOINTS_DIR, CheckpointError
from lopt.training.trainer import MetaTrainConfig, meta_train

_IN_A_ROW = 4  # kills or signals that one run is given
_STEPS_BETWEEN = 150  # outer steps for a start, in which it is to be harmed
_DAMAGED = ("config.json", "environment.json", "metrics.jsonl", CHECKPOINTS_DIR, f"{BEST_DIR}/{CHECKPOINTS_DIR}")


class ReliabilityError(RuntimeError):
    """An attempt that could not be made, or an unharmed run that failed."""


def reliability(
    experiment: MetaTrainConfig, script: Sequence[str], kinds: Sequence[str], attempts: int | None, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """Harm runs in several ways.

    Args:
      experiment: a cheap one, with held-out evaluations.
      script: the command that meta-trains the same task in a process of its own, without `--run-dir`.
      kinds: of `KINDS`.
      attempts: of each kind; None: those of about an hour.
      seed: of what happens when.

    Yields:
      For each kind `kind`, `attempts`, `same`, `told`, `lost`, `seconds` and `losses`, what was lost, in words.
    """
    with tempfile.TemporaryDirectory(prefix="lopt-reliability-") as scratch:
        root = Path(scratch)
        inside = _Inside(experiment, root)
        ways: dict[str, Callable[[int, random.Random], Iterator[str]]] = {
            "kills": partial(_stopped, script, root, (signal.SIGKILL,)),
            "signals": partial(_stopped, script, root, (signal.SIGTERM, signal.SIGINT)),
            "power cuts": inside.power_cuts,
            "full disks": inside.full_disks,
            "processes": partial(_two_starts, script, root),
            "damaged files": inside.damaged_files,
        }
        for kind in kinds:
            began = time.perf_counter()
            found = list(ways[kind](KINDS[kind] if attempts is None else attempts, random.Random(seed)))
            losses = [outcome for outcome in found if outcome not in ("same", "told")]
            counts = {name: found.count(name) for name in ("same", "told")}
            yield {
                "kind": kind,
                "attempts": len(found),
                **counts,
                "lost": len(losses),
                "seconds": round(time.perf_counter() - began),
                "losses": losses,
            }


def difference(run_dir: Path, whole: Path) -> str:
    """In what a run is not the unharmed one; "" if it is the same, bit for bit.

    Raises:
      CheckpointError, MetricsError: naming the file that is damaged.
    """
    for place in (run_dir, run_dir / BEST_DIR):
        other = whole / place.relative_to(run_dir)
        if not checkpoint.steps(other):
            continue
        newest = checkpoint.load_newest_theta(place)[1]  # verifies it
        if newest != checkpoint.steps(other)[-1]:
            return f"{place.name} ends at outer step {newest}, not {checkpoint.steps(other)[-1]}"
        name = f"{newest:08}.safetensors"
        if (place / CHECKPOINTS_DIR / name).read_bytes() != (other / CHECKPOINTS_DIR / name).read_bytes():
            return f"the state in {place.name} is another"
    one, other = (_records(directory) for directory in (run_dir, whole))
    return "" if one == other else f"{len(one)} lines of metrics, or other ones, instead of {len(other)}"


def _records(run_dir: Path) -> list[str]:
    records = [{k: v for k, v in record.items() if k != "inner_steps_per_s"} for record in metrics.read(run_dir)]
    return [json.dumps(record) for record in records]


class _Inside:
    """Faults within this process: compiled once, an attempt takes seconds."""

    def __init__(self, experiment: MetaTrainConfig, root: Path) -> None:
        self._experiment, self._root, self._made = experiment, root, 0
        self.whole = root / "inside"  # the unharmed run

    @functools.cached_property
    def _calls(self) -> int:
        """The calls of the unharmed run, which is made."""
        self._train(self._root / "first")  # compiles, which writes files too
        with at_call(-1, full_disk) as calls:
            self._train(self.whole)
        return calls()

    def _train(self, run_dir: Path, **changes: Any) -> None:
        meta_train(dataclasses.replace(self._experiment, **changes), run_dir, progress=False)

    def _new(self) -> Path:
        self._made += 1
        return self._root / f"attempt{self._made}"

    def _outcome(self, run_dir: Path, harmed: Path | None = None) -> str:
        """Start a run again, and say what has become of it; `harmed` is the file that a message is to name."""
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                self._train(run_dir)
                found = difference(run_dir, self.whole)
            except (RuntimeError, ValueError, OSError) as error:
                found = f"{type(error).__name__}: {error}"
        shutil.rmtree(run_dir)
        if not found:
            return "same"
        messages = [found, *(str(warning.message) for warning in said)]
        names = () if harmed is None else (harmed.name, str(harmed.parent))
        return "told" if any(name in message for name in names for message in messages) else found

    def power_cuts(self, attempts: int, chance: random.Random) -> Iterator[str]:
        """About every second run was cut off before, too."""
        image = None
        while attempts:
            run_dir = self._new()
            if image is not None and chance.random() < 0.5:
                shutil.move(image, run_dir)
            else:
                run_dir.mkdir()
            disk, image = Disk(run_dir), self._new()

            def strike(disk: Disk = disk, image: Path = image) -> None:
                disk.image(image, chance)
                raise PowerCut

            try:
                with warnings.catch_warnings(), disk.watched(), at_call(chance.randrange(self._calls), strike):
                    warnings.simplefilter("ignore")
                    self._train(run_dir)
                image = None  # it was done before its time had come: that is no attempt
            except PowerCut:
                copy = self._new()
                shutil.copytree(image, copy)
                attempts -= 1
                yield self._outcome(copy)
            shutil.rmtree(run_dir)

    def full_disks(self, attempts: int, chance: random.Random) -> Iterator[str]:
        """From some call on nothing can be written; then there is room again."""
        while attempts:
            run_dir, number = self._new(), chance.randrange(self._calls)
            with warnings.catch_warnings(), at_call(number, full_disk, lasting=True) as calls:
                warnings.simplefilter("ignore")
                try:
                    self._train(run_dir)
                    said = "a run went on though nothing could be written"
                except (OSError, CheckpointError, ValueError) as error:
                    said = f"{type(error).__name__}: {error}"
            if calls() <= number:
                continue  # it was done before the disk was full
            attempts -= 1
            yield self._outcome(run_dir) if os.strerror(errno.ENOSPC) in said else said

    def damaged_files(self, attempts: int, chance: random.Random) -> Iterator[str]:
        """A file of a run that is half done is emptied, cut, changed in a bit or taken away."""
        assert self._calls
        half = self._new()
        self._train(half, outer_steps=self._experiment.outer_steps // 2)
        for _ in range(attempts):
            run_dir = self._new()
            shutil.copytree(half, run_dir)
            place = run_dir / chance.choice(_DAMAGED)
            file = chance.choice(sorted(place.iterdir())) if place.is_dir() else place
            _damage(file, chance, text=file.suffix == ".jsonl")
            yield self._outcome(run_dir, file)


def _damage(file: Path, chance: random.Random, text: bool) -> None:
    content = file.read_bytes()
    at = chance.randrange(len(content))
    # A changed digit of a line of metrics is another number: lines have no checksums, as any tool is to read them.
    how = chance.choice(("empty", "cut", "gone") if text else ("empty", "cut", "gone", "bit"))
    if how == "gone":
        file.unlink()
    else:
        changed = content[:at] + bytes([content[at] ^ (1 << chance.randrange(8))]) + content[at + 1 :]
        file.write_bytes({"empty": b"", "cut": content[:at], "bit": changed}[how])


def _start(script: Sequence[str], run_dir: Path, steps: int) -> subprocess.Popen:
    command = [*script, "--run-dir", str(run_dir), "--outer-steps", str(steps), "--save-every", "1", "--held-out.every", "50"]
    with run_dir.with_name(f"{run_dir.name}.log").open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def _said(run_dir: Path) -> str:
    return run_dir.with_name(f"{run_dir.name}.log").read_text()[-2000:]


def _whole(script: Sequence[str], root: Path, steps: int) -> Path:
    """A run in a process of its own to which nothing happened."""
    whole = root / f"unharmed{steps}"
    if not whole.exists() and _start(script, whole, steps).wait():
        raise ReliabilityError(f"a run to which nothing happened has failed:\n{_said(whole)}")
    return whole


def _stopped(
    script: Sequence[str], root: Path, signals: Sequence[signal.Signals], attempts: int, chance: random.Random
) -> Iterator[str]:
    """Runs that are stopped at random moments, several times each."""
    left = attempts
    while left:
        times = min(_IN_A_ROW, left)
        left -= times
        whole = _whole(script, root, _STEPS_BETWEEN * times)
        run_dir, last, outcome = Path(tempfile.mkdtemp(dir=root)) / "run", 0, ""
        for _ in range(times):
            process, which = _start(script, run_dir, _STEPS_BETWEEN * times), chance.choice(signals)
            _wait_for_checkpoint(process, run_dir, last)
            time.sleep(chance.uniform(0, 0.3))
            process.send_signal(which)
            code = process.wait()
            if code not in (0, -which):
                outcome = f"exit status {code}: {_said(run_dir)}"
            last = (checkpoint.steps(run_dir) or [0])[-1]
        if _start(script, run_dir, _STEPS_BETWEEN * times).wait():
            outcome = _said(run_dir)
        outcome = outcome or difference(run_dir, whole) or "same"
        shutil.rmtree(run_dir.parent)
        yield from [outcome] * times


def _wait_for_checkpoint(process: subprocess.Popen, run_dir: Path, after: int) -> None:
    while process.poll() is None and (checkpoint.steps(run_dir) or [0])[-1] <= after:
        time.sleep(0.01)


def _two_starts(script: Sequence[str], root: Path, attempts: int, chance: random.Random) -> Iterator[str]:
    """Two processes on one run directory at about the same time: one trains, the other says that it cannot."""
    for _ in range(attempts):
        whole = _whole(script, root, _STEPS_BETWEEN)
        run_dir = Path(tempfile.mkdtemp(dir=root)) / "run"
        starts = [_start(script, run_dir, _STEPS_BETWEEN)]
        time.sleep(chance.uniform(0, 0.5))
        starts.append(_start(script, run_dir, _STEPS_BETWEEN))
        codes = sorted(process.wait() for process in starts)
        refused = codes == [0, 1] and "is in use by process" in _said(run_dir)
        outcome = difference(run_dir, whole) if refused or codes == [0, 0] else f"exit statuses {codes}: {_said(run_dir)}"
        shutil.rmtree(run_dir.parent)
        yield outcome or "same"


def command(script: Path, config: Path) -> list[str]:
    """What starts a run of a config in a process of its own."""
    return [sys.executable, str(script), "--config", str(config)]
