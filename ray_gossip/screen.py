"""Where a person looks: any stream, made so that what is wrong with it is no matter of the run's."""

from __future__ import annotations

import os
from typing import TextIO, cast


def screen(stream: TextIO | None) -> TextIO:
    """The stream, for text alone. What it has no letter for is written as an escape. When nobody reads it any more (a
    pipe that closed, a terminal that is gone, a full disk), the rest is dropped.

    Args:
        stream: None where the process was started without.
    """
    return cast(TextIO, _Screen(stream))


def flush_or_drop(stream: TextIO | None) -> None:
    """Flush a standard stream before the process ends. What cannot be written any more goes to /dev/null, as Python's
    documentation of SIGPIPE has it, because Python would complain of it, and end with exit code 120."""
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class _Screen:
    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        try:
            if self._stream is not None:
                self._stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
        except OSError:
            self._stream = None
        return len(text)

    def flush(self) -> None:
        try:
            if self._stream is not None:
                self._stream.flush()
        except OSError:
            self._stream = None

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise OSError("nobody reads this stream")
        return self._stream.fileno()
