"""Where results lie: in a folder, or behind a URI such as s3://bucket/sweeps/a (whatever pyarrow knows).

pyarrow is loaded for URIs only.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from ray_gossip.errors import ConfigError


def is_uri(place: str | Path) -> bool:
    return "://" in str(place)


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


def name_of(place: str | Path) -> str:
    """The last part."""
    return str(place).rstrip("/").rpartition("/")[2]


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


def _open(uri: str) -> tuple[Any, str]:
    import pyarrow
    from pyarrow import fs

    try:
        files, path = fs.FileSystem.from_uri(uri)
    except pyarrow.ArrowException as error:
        raise OSError(str(error)) from error
    return files, path.rstrip("/")
