"""Where a scheduled group meets: a meeting collects its members and closes as soon as nobody is missing.

hivemind's matchmaking searches for *anyone* with the same key, through the DHT, and a short group waits its whole
window. A scheduled group knows its members, so one of them hosts the meeting and the others call it: one round trip
and no DHT traffic. The host is only the place: its own local steps may be late, and a host that is gone is replaced by
the next member in the group's order.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

PROBE_S = 0.25  # a meeting asks after missing members this often: the price of a dead groupmate


@dataclass(frozen=True)
class Gathering:
    """How a meeting ended: who averages together, in the order of their parts."""

    group_id: bytes
    present: tuple[str, ...]  # peer ids
    absent: dict[str, str]  # peer id -> why
    anchors: frozenset[int] = frozenset()  # ids of the anchors from which those present can take differences


Probe = Callable[[str], Awaitable[str | None]]
"""Asks a member whether it is still coming; None: yes, otherwise why not."""


@dataclass
class Meeting:
    """One group's meeting, in the host's averager process.

    It ends when everybody is there or excused, and after `wait_s` whatever happens.
    """

    expected: frozenset[str]
    probe: Probe
    wait_s: float
    arrived: dict[str, int] = field(default_factory=dict)  # peer id -> anchor
    absent: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.opened = time.monotonic()
        self._ended: asyncio.Future[Gathering] = asyncio.get_running_loop().create_future()
        self._watch: asyncio.Task[None] | None = asyncio.create_task(self._watch_for_missing())

    async def attend(self, peer_id: str, absent_because: str = "", anchor: int = 0) -> Gathering:
        """Come (or excuse oneself) and wait until the meeting has ended. Whoever is cancelled meanwhile has gone.

        Raises:
            ValueError: this peer is not expected here.
        """
        if peer_id not in self.expected:
            raise ValueError(f"{peer_id} is not in this group")
        if not self._ended.done():
            self._set(peer_id, absent_because, anchor)
        try:
            return await asyncio.shield(self._ended)
        except asyncio.CancelledError:
            if not self._ended.done():
                self._set(peer_id, "did not wait for the others")
            raise

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.opened

    def _set(self, peer_id: str, absent_because: str, anchor: int = 0) -> None:
        if absent_because:
            self.arrived.pop(peer_id, None)
            self.absent[peer_id] = absent_because
        else:
            self.absent.pop(peer_id, None)
            self.arrived[peer_id] = anchor
        self._end_if_complete()

    def _missing(self) -> frozenset[str]:
        return self.expected - self.arrived.keys() - self.absent.keys()

    def _end_if_complete(self) -> None:
        if not self._missing() and not self._ended.done():
            order = sorted(self.arrived)
            random.shuffle(order)  # who reduces which part changes from round to round
            anchors = frozenset(self.arrived.values())
            self._ended.set_result(Gathering(secrets.token_bytes(20), tuple(order), dict(self.absent), anchors))
            if self._watch is not None:
                self._watch.cancel()
                self._watch = None  # ended meetings are kept for latecomers, their tasks need not be

    async def _watch_for_missing(self) -> None:
        while self.age_s < self.wait_s:
            await asyncio.sleep(min(PROBE_S, max(0.0, self.wait_s - self.age_s)))
            for peer_id, reason in (await self._ask_the_missing()).items():
                if peer_id not in self.arrived:
                    self.absent[peer_id] = reason
            self._end_if_complete()
        for peer_id in self._missing():
            self.absent[peer_id] = f"did not come within {self.wait_s:g} s"
        self._end_if_complete()

    async def _ask_the_missing(self) -> dict[str, str]:
        """Peer id -> why it is not coming, for those that say so in the time that is left."""
        asked = {asyncio.ensure_future(self.probe(peer_id)): peer_id for peer_id in self._missing()}
        if not asked:
            return {}
        try:
            answered, _ = await asyncio.wait(asked, timeout=max(0.0, self.wait_s - self.age_s))
        finally:
            for answer in asked:
                answer.cancel()  # no effect on those that are done
        return {
            asked[answer]: reason
            for answer in answered
            if not answer.cancelled() and answer.exception() is None and (reason := answer.result()) is not None
        }
