"""A peer's part in checkpoints: its own file, written in the background, and read again."""

from __future__ import annotations

import hashlib
import io
import secrets
import threading
import time
from collections.abc import Mapping
from queue import SimpleQueue
from typing import IO, Any, cast

import torch

from ray_gossip import storage
from ray_gossip.checkpoints.manifest import BUSY, folder_of
from ray_gossip.errors import SwarmError, one_line
from ray_gossip.records import Saved


class Writer:
    """Writes one peer's states, one at a time; what has become of them is in `told`."""

    def __init__(self, place: str, *, peer_index: int) -> None:
        self._place, self._peer_index = place, peer_index
        # of this process alone: what another process of the same peer has saved may be part of a checkpoint
        self._name = f"peer-{peer_index:02d}-{secrets.token_hex(4)}.pt"
        self._thread: threading.Thread | None = None
        self.told: SimpleQueue[Saved] = SimpleQueue()

    @property
    def is_busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def write(self, mark: int, state: Mapping[str, Any]) -> None:
        """In the background; a state for a later mark waits for none that is still being written.

        Args:
            state: tensors that nobody changes any more, numbers, texts, and mappings and lists of these;
                `local_step` and `samples` are among them.
        """
        if self.is_busy:
            self._tell(mark, state, cause=BUSY)
            return
        self._thread = threading.Thread(target=self._write, args=[mark, state], name="checkpoint")  # ends with its file
        self._thread.start()

    def wait(self, within_s: float | None = None) -> None:
        """Return when nothing is being written any more, or that takes longer."""
        if self._thread is not None:
            self._thread.join(within_s)

    def _write(self, mark: int, state: Mapping[str, Any]) -> None:
        measured: _Measured | None = None
        try:
            with storage.writing(folder_of(self._place, mark), self._name) as file:
                measured = _Measured(file)
                torch.save(dict(state), cast("IO[bytes]", measured))
        except Exception as error:  # whatever a state holds that cannot be saved
            # of a disk that is full torch tells by a RuntimeError, and not that it is full
            why = error if measured is None or measured.error is None else measured.error
            text = why.strerror if isinstance(why, OSError) and why.strerror else _first_line(why)
            self._tell(mark, state, cause=f"could not be saved: {text}")
            return
        self._tell(mark, state, name=self._name, num_bytes=measured.num_bytes, digest=measured.digest.hexdigest())

    def _tell(self, mark: int, state: Mapping[str, Any], **outcome: Any) -> None:
        self.told.put(
            Saved(
                peer_index=self._peer_index,
                wall_time=time.time(),
                mark=mark,
                local_step=state["local_step"],
                samples=state["samples"],
                **outcome,
            )
        )


def load(place: str, mark: int, name: str) -> dict[str, Any]:
    """What a peer has saved.

    Raises:
        SwarmError: it cannot be read.
    """
    try:
        content = storage.read(folder_of(place, mark), name)
        found: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch raises for a file that is none
        raise SwarmError(f"checkpoint {mark}: {name} cannot be read: {_first_line(error)}") from error
    return found


def _first_line(error: Exception) -> str:
    return one_line((str(error).strip() or type(error).__name__).splitlines()[0])


class _Measured(io.RawIOBase):
    """A file that knows how much was written, and its digest."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.num_bytes, self.digest = file, 0, hashlib.blake2b(digest_size=16)
        self.error: OSError | None = None  # with which it could not be written

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        try:
            self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(data)
        num_bytes = memoryview(data).nbytes
        self.num_bytes += num_bytes
        return num_bytes
