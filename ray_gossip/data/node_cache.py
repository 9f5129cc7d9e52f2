"""Decoded images on disk, made once per node and then mapped into every peer's memory.

Two files: `<name>.npy`, the images as one uint8 array, and `<name>.json` beside it with the array's checksum and the
labels. Each appears whole (written aside, then renamed), the second one last; a process that is killed in between
leaves nothing that looks complete.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from ray_gossip.config import DataConfig
from ray_gossip.errors import DataError
from ray_gossip.storage import write_atomically

Images = np.ndarray[Any, np.dtype[np.uint8]]
_CHUNK_BYTES = 2**26  # of a checksum


class Decoding(NamedTuple):
    """What is to be in a cache."""

    shape: tuple[int, ...]  # num_images, channels, height, width
    labels: list[int]  # [num_images]
    decode: Callable[[Images], None]  # fills the array that it is given


def root_of(config: DataConfig) -> Path:
    """`data.root` on this node."""
    if config.root is None:
        raise DataError(f"data.name={config.name} is read from disk: set data.root to the folder that holds it")
    return config.root.expanduser()


def cached(name: str, config: DataConfig, find: Callable[[], Decoding]) -> tuple[Images, list[int]]:
    """The images and labels of a cache that is whole; if it is missing or damaged, it is made.

    The images are mapped from the file, so that the peers of a node share one copy; writing to them changes nothing
    on disk.

    Args:
        find: called when the cache has to be made. Whatever it or its `decode` raises, there is no cache afterwards.

    Raises:
        DataError: as `find` does, or the folder cannot be written to, or another process takes too long.
    """
    folder = root_of(config) if config.cache is None else config.cache.expanduser()
    array, manifest = folder / f"{name}.npy", folder / f"{name}.json"
    found = _read(array, manifest)
    if found is None:
        decoding = find()  # before anything is written: nothing is left behind in a folder that was misspelt
        with only_one_process(folder, name, config):
            found = _read(array, manifest)  # another process may have made it meanwhile
            if found is None:
                _write(array, manifest, decoding)
                found = _read(array, manifest)
    if found is None:
        raise DataError(f"{array} was damaged while it was written: look at the disk of {socket.gethostname()}")
    return found


@contextlib.contextmanager
def only_one_process(folder: Path, name: str, config: DataConfig) -> Iterator[None]:
    """Of all on this node, for what `name` stands for. The lock goes with its process, even if that is killed.

    Raises:
        DataError: another process held it for `data.prepare_s`, or the folder cannot be written to.
    """
    lock = FileLock(folder / f".{name}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=config.prepare_s)
    except Timeout:
        raise DataError(
            f"another process has been preparing {folder / name} for data.prepare_s={config.prepare_s:g} s: run "
            "`ray-gossip data prepare` ahead of time, or raise data.prepare_s"
        ) from None
    except OSError as error:
        raise DataError(
            f"cannot write to {folder} on {socket.gethostname()} ({error.strerror}): set data.cache or data.root to a "
            "folder that is writable on every node"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _read(array: Path, manifest: Path) -> tuple[Images, list[int]] | None:
    """None: there is no such cache, or it is damaged."""
    try:
        stored = json.loads(manifest.read_bytes())
        images: Images = np.load(array, mmap_mode="c")
        whole = images.dtype == np.uint8 and len(images) == len(stored["labels"]) and _crc32(images) == stored["crc32"]
        return (images, stored["labels"]) if whole else None
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        return None


def _write(array: Path, manifest: Path, decoding: Decoding) -> None:
    unfinished = array.with_suffix(".unfinished")  # what a killed process left there is written over
    try:
        manifest.unlink(missing_ok=True)
        images: Any = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
            unfinished, mode="w+", dtype=np.uint8, shape=decoding.shape
        )
        _reserve(unfinished)
        decoding.decode(images)
        images.flush()
        written = {"crc32": _crc32(images), "labels": decoding.labels}
        unfinished.replace(array)
        write_atomically(manifest, json.dumps(written).encode())
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(
            f"cannot write {array} on {socket.gethostname()}: {reason}; set data.cache to a folder with room"
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)


def _reserve(file: Path) -> None:
    """Have the disk set aside what is mapped: writing to a page that it has no room for would kill the process."""
    with file.open("r+b") as opened:
        os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)


def _crc32(images: Images) -> int:
    flat = images.reshape(-1)
    checksum = 0
    for start in range(0, flat.size, _CHUNK_BYTES):
        checksum = zlib.crc32(flat[start : start + _CHUNK_BYTES].data, checksum)
    return checksum
