"""Files that are whole or not there, and files that grow by whole records."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader, a crash or a full disk never meets half of it. Raises OSError."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


class Journal:
    """A file to which one process adds records. Each is in the file when `write` returns, and stays if that process is
    killed then."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)  # unbuffered: a record is one system call

    def write(self, record: bytes) -> None:
        """Add a record. Raises OSError, such as for a full disk; nothing was added then."""
        before, left = os.fstat(self._file.fileno()).st_size, memoryview(record)
        try:
            while left:
                left = left[self._file.write(left) :]  # a disk that is nearly full takes a part of it first
        except OSError:
            self._file.truncate(before)
            raise

    def close(self) -> None:
        self._file.close()
