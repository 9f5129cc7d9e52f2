"""Where results lie: files that are whole or not there, files that grow by whole records, and places that are a folder
or a URI such as s3://bucket/sweeps/a (whatever pyarrow knows).

pyarrow is loaded for URIs only.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ray_gossip.errors import ConfigError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # a Path makes one slash of two


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader, a crash or a full disk never meets half of it. Raises OSError."""
    write_whole(str(path.parent), path.name, content)


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


def is_uri(place: str | Path) -> bool:
    return _SCHEME.match(str(place)) is not None


def check_uri(uri: str) -> None:
    """Raise ConfigError unless pyarrow knows where this leads. Nothing is looked up there yet."""
    try:
        _, path = _open(uri)
    except OSError as error:
        raise ConfigError(
            f"--run-dir {uri} leads nowhere: {str(error).splitlines()[0]}; name a folder, or s3://bucket/name"
        ) from None
    if not path.strip("/"):
        raise ConfigError(f"--run-dir {uri} names no bucket or folder: write it whole, as s3://bucket/name")


def name_of(place: str) -> str:
    """The last part, without a URI's query."""
    return _split(place)[0].rpartition("/")[2]


def parent_of(place: str) -> str:
    """Where this place lies; a URI keeps its query, such as ?endpoint_override=..."""
    path, query = _split(place)
    return path.rpartition("/")[0] + query


def inside(place: str, name: str) -> str:
    """The place of this name below another."""
    path, query = _split(place)
    return f"{path}/{name}{query}"


def write(place: str, name: str, content: bytes) -> None:
    """Raises OSError."""
    if not is_uri(place):
        Path(place).mkdir(parents=True, exist_ok=True)
        Path(place, name).write_bytes(content)
        return
    files, path = _open(place)
    files.create_dir(path, recursive=True)
    with files.open_output_stream(f"{path}/{name}") as stream:
        stream.write(content)


def write_whole(place: str, name: str, content: bytes) -> None:
    """The same; nobody ever meets half of it. Raises OSError."""
    with writing(place, name) as file:
        file.write(content)


@contextlib.contextmanager
def writing(place: str, name: str) -> Iterator[IO[bytes]]:
    """A file that is there, whole, once the context is left without an error. Raises OSError."""
    if is_uri(place):
        files, path = _open(place)
        files.create_dir(path, recursive=True)
        with files.open_output_stream(f"{path}/{name}") as stream:  # an object is there when it is closed
            yield stream
        return
    folder = Path(place)
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{name}.{os.getpid()}.partial"
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(folder / name)
    finally:
        partial.unlink(missing_ok=True)


def names(place: str) -> list[str]:
    """Of files and folders; none where there is no such place. Raises OSError."""
    if is_uri(place):
        from pyarrow import fs

        files, path = _open(place)
        return [info.base_name for info in files.get_file_info(fs.FileSelector(path, allow_not_found=True))]
    return [each.name for each in Path(place).iterdir()] if Path(place).is_dir() else []


def exists(place: str, name: str) -> bool:
    """A file of this name. Raises OSError."""
    return name in names(place)


def chunks(place: str, name: str, num_bytes: int) -> Iterator[bytes]:
    """A file, piece by piece. Raises OSError."""
    with contextlib.ExitStack() as stack:
        if is_uri(place):
            files, path = _open(place)
            stream = stack.enter_context(files.open_input_stream(f"{path}/{name}"))
        else:
            stream = stack.enter_context(Path(place, name).open("rb"))
        while chunk := stream.read(num_bytes):
            yield chunk


def remove_folder(place: str) -> None:
    """With all that is in it. Raises OSError."""
    if is_uri(place):
        files, path = _open(place)
        files.delete_dir(path)
    else:
        shutil.rmtree(place)


def read(place: str, name: str) -> bytes:
    """Raises OSError."""
    if not is_uri(place):
        return Path(place, name).read_bytes()
    files, path = _open(place)
    with files.open_input_stream(f"{path}/{name}") as stream:
        content: bytes = stream.readall()
    return content


def remove(place: str, name: str) -> None:
    """Remove a file, if it is there."""
    with contextlib.suppress(OSError):
        if is_uri(place):
            files, path = _open(place)
            files.delete_file(f"{path}/{name}")
        else:
            Path(place, name).unlink()


def upload(folder: Path, place: str) -> None:
    """Copy everything in a folder to where a URI leads."""
    from pyarrow import fs

    files, path = _open(place)
    files.create_dir(path, recursive=True)
    fs.copy_files(str(folder), path, destination_filesystem=files)


def _split(place: str) -> tuple[str, str]:
    """The path, and with its question mark what a URI says of the way there."""
    path, mark, query = place.partition("?") if is_uri(place) else (place, "", "")
    return path.rstrip("/"), mark + query


def _open(uri: str) -> tuple[Any, str]:
    import pyarrow
    from pyarrow import fs

    try:
        files, path = fs.FileSystem.from_uri(uri)
    except pyarrow.ArrowException as error:
        raise OSError(str(error)) from error
    return files, path.rstrip("/")
