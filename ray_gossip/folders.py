"""Folders and files that a user names: tried where they are named, before anything is started."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ray_gossip.errors import ConfigError

_PROBE_BYTES = 65_536  # more than a run's first files take: a full disk says so
_LONGEST_PART, _LONGEST = 255, 2500  # bytes; Linux takes 4,096, and files below a folder have names too


def is_possible(name: str | Path) -> bool:
    """Whether a file system takes it: Python raises for some of these, and takes others for missing."""
    if not str(name).isprintable():  # which no text is that cannot be encoded either
        return False
    encoded = os.fsencode(name)
    fits = len(encoded) <= _LONGEST and all(len(part) <= _LONGEST_PART for part in encoded.split(b"/"))
    return fits and bool(encoded)


def check_writable(folder: Path, option: str = "--run-dir") -> None:
    """Raise ConfigError unless this folder can be written to, or can be made.

    A folder is made in what is there of it, and removed: that some cannot be written to is seen in no other way, such
    as /proc, or a file system that is mounted for reading.
    """
    if not is_possible(folder):
        raise ConfigError(f"{option} {folder} cannot be the name of a folder: name another")
    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(each))
    try:
        made = Path(tempfile.mkdtemp(prefix=".ray_gossip-", dir=there))
        try:
            with tempfile.TemporaryFile(dir=made, buffering=0) as probe:
                probe.write(bytes(_PROBE_BYTES))
        finally:
            made.rmdir()
    except NotADirectoryError:
        raise ConfigError(f"cannot write to {option} {folder}: {there} is not a writable folder") from None
    except OSError as error:
        raise ConfigError(
            f"cannot write to {option} {folder}: {there}: {error.strerror}; name another folder"
        ) from None


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Nobody else works in this folder meanwhile. It is made if missing.

    Raises:
        ConfigError: somebody does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".driver"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ConfigError(
                f"--run-dir {folder}: another run is at work there, {file.read().strip()}; wait for its end, or name "
                "another folder"
            ) from None
        except OSError:  # a file system that knows no locks: nobody is kept out there
            pass
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
