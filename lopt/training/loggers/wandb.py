"""Weights & Biases: one W&B run for a run directory, however often it is started; files in RUN/wandb.

W&B lives in a process of its own (`lopt.training.loggers.wandb_process`), which is handed one line for each outer step. Whatever happens to
W&B there, a hang included, the training process neither waits nor fails; and if the training process is killed, the other one
still writes what it was given.

Why not `wandb.init(resume="allow")` in the training process, measured with wandb 0.31.0 in offline mode: of a process that was killed
after `log` had returned from five steps, its file held none; the next start did not know that it resumed (`resumed` False, step 0), so
that it wrote steps again which an upload cannot take back; and with W&B's service stopped, `log` did not return within two minutes.
"""

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict

from lopt.training.loggers.base import LoggerConfig, Opening

DIRECTORY = "wandb"
LOG_FILE = "process.log"
_PENDING_BYTES = 64 * 2**20  # a row has about 1 KB


class WandbLogger:
    """A curve for each metric, and config and environment in the W&B run's config.

    Args:
      config: its mode, which is not "disabled", and what the W&B run is called.
      start: of the run.
      close_seconds: how long `close` waits for W&B to write or upload the rest.
      silent_seconds: how long it waits for a sign of life, of which there is one a second.
    """

    def __init__(self, config: LoggerConfig, start: Opening, close_seconds: float = 120.0, silent_seconds: float = 10.0) -> None:
        self._close_seconds, self._silent_seconds = close_seconds, silent_seconds
        self._pending = bytearray()
        self._heard = b""
        self._error: str | None = None
        run_dir = start.run_dir.resolve()
        self._directory = run_dir / DIRECTORY
        self._directory.mkdir(parents=True, exist_ok=True)
        # In the run directory rather than in the user's; and nothing is sent but to where the metrics go. The user's settings win.
        defaults = {"WANDB_CACHE_DIR": str(self._directory), "WANDB_ERROR_REPORTING": "false"}
        with (self._directory / LOG_FILE).open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lopt.training.loggers.wandb_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=defaults | os.environ,
                start_new_session=True,  # a Ctrl-C is for the training process
                bufsize=0,
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._to, self._from = self.process.stdin, self.process.stdout
        for pipe in (self._to, self._from):
            os.set_blocking(pipe.fileno(), False)
        self._tell(config=asdict(config), start={**asdict(start), "run_dir": str(run_dir)})

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Hand the values to the other process; does not wait for it."""
        self._tell(step=step, values=dict(values))
        self._listen()
        if len(self._pending) > _PENDING_BYTES:
            self._close_seconds = 0.0  # it has had its time
            raise TimeoutError(f"W&B has not taken {len(self._pending):,} bytes of metrics")

    def close(self, failed: bool) -> None:
        """Wait, but not for ever, until W&B has written or uploaded everything."""
        began = heard = time.monotonic()
        try:
            self._tell(failed=failed)
            while self.process.poll() is None:
                if self._pending:
                    self._push()
                else:
                    self._to.close()
                heard = time.monotonic() if self._listen() else heard
                for since, seconds in ((began, self._close_seconds), (heard, self._silent_seconds)):
                    if time.monotonic() - since > seconds:
                        raise TimeoutError(
                            f"W&B was not done {seconds:g} s after the end of the run; what it has written is in '{self._directory}'"
                        )
                time.sleep(0.01)
            self._listen()
            if self.process.returncode:
                raise self._death()
        finally:
            self.process.kill()
            self.process.wait()
            self._to.close()
            self._from.close()

    def _tell(self, **message: object) -> None:
        self._pending += json.dumps(message).encode() + b"\n"
        self._push()

    def _push(self) -> None:
        """Write what the pipe has room for."""
        try:
            while self._pending and (written := self._to.write(self._pending)):
                del self._pending[:written]
        except BrokenPipeError:
            self.process.wait(10)
            self._listen()
            raise self._death() from None

    def _listen(self) -> bool:
        """Pass on what the other process warns of, and keep what it says of its end; whether it has said anything."""
        read = self._from.read() or b""
        self._heard += read
        *lines, self._heard = self._heard.split(b"\n")
        for line in lines:
            message = json.loads(line)
            self._error = message.get("error", self._error)
            if "warning" in message:
                warnings.warn(message["warning"], RuntimeWarning, stacklevel=2)
        return bool(read)

    def _death(self) -> RuntimeError:
        last_words = self._directory / LOG_FILE
        return RuntimeError(self._error or f"W&B's process ended with status {self.process.returncode}; see '{last_words}'")
