"""Records of peers that have joined by themselves, on their way to the driver: through one of its own peers."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError

from ray_gossip.errors import SwarmError
from ray_gossip.gossip.commands import Commands, Interrupted
from ray_gossip.records import Record


class Passing:
    """One peer's part in that: it has records of its own to tell, or takes those of others."""

    def __init__(self, averager: Commands) -> None:
        self._averager = averager
        self._asked: Future[list[Record]] | None = None

    def tell(self, records: Sequence[Record], *, wait_s: float) -> None:
        """Pass these on; wait at most so long until they have arrived."""
        *_, last = [self._averager.tell_driver(record) for record in records]
        if wait_s:
            with contextlib.suppress(FutureTimeoutError, TimeoutError, SwarmError):
                last.result(timeout=wait_s)

    def take(self) -> list[Record]:
        """What guests have told this peer up to the last time that this was asked; waits for nothing."""
        records: list[Record] = []
        if self._asked is not None and self._asked.done():
            done, self._asked = self._asked, None
            with contextlib.suppress(Interrupted):
                records = done.result()
        if self._asked is None:
            self._asked = self._averager.take_guest_records()
        return records
