"""When a peer saves itself: at a number of local steps, when the driver asks, and once more when it is stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from ray_gossip.checkpoints.writer import Writer
from ray_gossip.records import Saved


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """From what a peer goes on."""

    place: str  # of the checkpoints
    mark: int
    name: str  # of the file
    samples: int  # that count as seen by this peer
    is_same_shard: bool  # it is the same peer of as many
    same_data: tuple[str, ...] = ()  # files of all earlier peers whose samples this one goes on with


class Saving:
    """One peer's.

    Args:
        place: of the checkpoints; None: it never saves.
        every_steps: local steps between two; None: only when it is asked.
    """

    def __init__(self, place: str | None, *, every_steps: int | None, peer_index: int) -> None:
        self._writer = Writer(place, peer_index=peer_index) if place is not None else None
        self._every_steps = every_steps
        self._saved: int | None = None  # the latest mark: its file may be part of a checkpoint, and is not written over
        self._looked_at: int | None = None  # the local step after which it was last asked whether it is time
        self._lock = threading.Lock()
        self._asked: int | None = None  # the mark
        self._last: SimpleQueue[int] = SimpleQueue()  # mark of the checkpoint with which a stop ends

    def ask(self, mark: int) -> None:
        """Save after the present local step. From any thread."""
        with self._lock:
            self._asked = mark

    def ask_last(self, mark: int) -> None:
        """What `last` waits for. From any thread."""
        self._last.put(mark)

    @property
    def is_used(self) -> bool:
        """The training asks whether it is time, now and then."""
        return self._looked_at is not None

    def after_step(self, local_step: int, state: Callable[[], dict[str, Any]]) -> None:
        """Save if it is time. In the training thread, between two local steps.

        Args:
            state: a copy of all that this peer goes on from.
        """
        with self._lock:
            mark, self._asked = self._asked, None
        before, self._looked_at = self._looked_at, local_step
        if mark is None and self._every_steps is not None:
            begun = local_step - local_step % self._every_steps
            mark = begun if begun > (local_step - 1 if before is None else before) else None
        if mark is not None:
            self._save(mark, state)

    def last(self, state: Callable[[], dict[str, Any]], *, within_s: float) -> None:
        """Save once more, if the driver says within this time for which checkpoint. In the training thread, after the
        last local step."""
        self.finish()  # what is being written
        try:
            mark = self._last.get(timeout=max(0.0, within_s))
        except Empty:  # it is stopped without a checkpoint, or nobody is there to name one
            return
        self._save(mark, state)
        self.finish()

    def finish(self) -> None:
        """Wait for what is being written."""
        if self._writer is not None:
            self._writer.wait()

    def told(self) -> list[Saved]:
        """What has been saved since this was last asked."""
        told: list[Saved] = []
        while self._writer is not None and not self._writer.told.empty():
            told.append(self._writer.told.get())
        return told

    def _save(self, mark: int, state: Callable[[], dict[str, Any]]) -> None:
        if mark != self._saved and self._writer is not None:
            self._saved = mark
            self._writer.write(mark, state())
