"""TensorBoard beside a run, for as long as the command lasts."""

from __future__ import annotations

import contextlib
import ctypes
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from ray_gossip.errors import UserError

_START_S = 60.0  # a busy machine
_END_S = 5.0
_LINK = re.compile(r"http://\S+")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@contextlib.contextmanager
def board(logdir: Path, stream: TextIO) -> Iterator[None]:
    """Start TensorBoard on a free port of this machine, say where, and end it with the context. Where somebody looks at
    the stream, a run that has ended leaves it there until Ctrl-C.

    Raises:
        UserError: it does not start; what it says is in the line.
    """
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--host", "localhost", "--port", "0"]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # Ctrl-C is for the run: while that stops in order, the curves can be looked at
        preexec_fn=_end_with_parent,
    ) as process:
        try:
            said = _Said(process)
            stream.write(f"curves: {said.link()}\n")
            stream.flush()
            yield
            if stream.isatty():
                stream.write("TensorBoard goes on until Ctrl-C\n")
                stream.flush()
                with contextlib.suppress(KeyboardInterrupt):
                    process.wait()
        finally:
            process.terminate()
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()


class _Said:
    """What TensorBoard prints; read to the end, or it would wait for a reader."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process, self._link, self._last = process, "", ""
        self._is_known = threading.Event()  # where it is, or that it has ended
        threading.Thread(target=self._read, name="tensorboard", daemon=True).start()

    def link(self) -> str:
        has_spoken = self._is_known.wait(_START_S)
        if not self._link:
            silence = "it ended without a word" if has_spoken else f"it did not say where it is within {_START_S:g} s"
            raise UserError(f"TensorBoard did not start: {self._last or silence}")
        return self._link

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._last = line.strip() or self._last
            if not self._link and (found := _LINK.search(line)):
                self._link = found[0]
                self._is_known.set()
        self._is_known.set()


def _end_with_parent() -> None:
    """Also where that is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
