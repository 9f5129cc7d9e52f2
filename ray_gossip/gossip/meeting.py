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
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field

from ray_gossip.causes import SILENT, TOO_LATE, UNREACHABLE
from ray_gossip.gossip.round import Behind, NoRound, Stage

PROBE_S = 0.25  # a meeting asks after missing members this often: the price of a dead groupmate
CALL_S = 0.05  # a groupmate that comes a moment later by itself need not be called


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """What a peer brings to a meeting."""

    excuse: str = ""  # not empty: it does not take part, and says why, so that nobody waits for it
    anchor: int = 0
    due_in_s: float = 0.0  # until then it calls nobody: it is ahead of the others, and waits for them to begin
    wait_s: float  # how long it waits for those that it has called


@dataclass(frozen=True)
class Answer:
    """What a missing member says when it is asked whether it is coming."""

    reason: str = ""  # why not; empty: it is
    round: int = -1  # where it is instead, if that is why
    hosts: bool = False  # it has a meeting of this group open itself


Probe = Callable[[str, bool], Coroutine[None, None, Answer]]
"""Asks a member whether it is still coming; and calls it, if the second argument says so."""


@dataclass(frozen=True)
class Gathering:
    """How a meeting ended: the peers that average together, in the order of their parts."""

    group_id: bytes
    present: tuple[str, ...]  # peer ids
    absent: dict[str, str]  # peer id -> why
    anchors: frozenset[int] = frozenset()  # ids of the anchors from which those present can take differences
    ahead: int = -1  # the latest round in which an absent member is
    moved_to: str = ""  # not empty: nobody averages here, the group meets at this member


@dataclass
class Meeting:
    """One group's meeting, in the host's sidecar.

    It ends when everybody is there or excused; or when the first of those that have come and called can wait no longer.

    Args:
        expected: peer ids of the group.
        wait_s: the longest that it may take.
        earlier: members that come before this one as hosts; this one hosts because they could not be reached. Where one
            of them turns out to host the same meeting, the two would wait for each other: this one moves there.
        back_s: how long it waits for a member that cannot be reached: its network side may be back by then.
    """

    expected: frozenset[str]
    probe: Probe
    wait_s: float
    earlier: frozenset[str] = frozenset()
    back_s: float = 0.0
    arrived: dict[str, int] = field(default_factory=dict)  # peer id -> anchor
    absent: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._now = loop.time
        self.opened = self._now()
        self._calls_at, self._ends_at = float("inf"), self.opened + self.wait_s
        self._ask_at = self.opened + PROBE_S
        self._has_called = False
        self._answered: set[str] = set()  # of those that are missing
        self._gone_at: dict[str, float] = {}  # members that cannot be reached, and since when
        self._ahead = -1
        self._news = asyncio.Event()
        self._ended: asyncio.Future[Gathering] = loop.create_future()
        self._watch: asyncio.Task[None] | None = asyncio.create_task(self._watch_for_missing())

    async def attend(self, peer_id: str, arrival: Arrival) -> Gathering:
        """Come (or excuse oneself) and wait until the meeting has ended. A peer that is cancelled meanwhile has gone.

        Raises:
            ValueError: this peer is not expected here.
        """
        if peer_id not in self.expected:
            raise ValueError(f"{peer_id} is not in this group")
        if not self._ended.done():
            if not arrival.excuse:
                due_at = self._now() + CALL_S + arrival.due_in_s
                self._calls_at = min(self._calls_at, due_at)
                self._ends_at = min(self._ends_at, due_at + arrival.wait_s)
            self._set(peer_id, arrival.excuse, arrival.anchor)
            self._news.set()
        try:
            return await asyncio.shield(self._ended)
        except asyncio.CancelledError:
            if not self._ended.done():
                if self.back_s:
                    self.arrived.pop(peer_id, None)  # missing again: it is asked
                else:
                    self._set(peer_id, "did not wait for the others")
            raise

    @property
    def has_ended(self) -> bool:
        return self._ended.done()

    @property
    def age_s(self) -> float:
        return self._now() - self.opened

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
        if not self._missing():
            order = sorted(self.arrived)
            random.shuffle(order)  # the part that a peer reduces changes from round to round
            self._end(
                Gathering(
                    group_id=secrets.token_bytes(20),
                    present=tuple(order),
                    absent=dict(self.absent),
                    anchors=frozenset(self.arrived.values()),
                    ahead=self._ahead,
                )
            )

    def _end(self, gathering: Gathering) -> None:
        if not self._ended.done():
            self._ended.set_result(gathering)
            if self._watch is not None:
                self._watch.cancel()
                self._watch = None  # ended meetings are kept for latecomers, their tasks need not be

    async def _watch_for_missing(self) -> None:
        asked: dict[str, asyncio.Task[Answer]] = {}
        try:
            while self._now() < self._ends_at:
                await self._something_happens()
                self._hear(asked)
                self._ask_the_missing(asked)
            for peer_id in self._missing():
                came_not = f"{TOO_LATE} {self.age_s:.2g} s"
                self.absent[peer_id] = came_not if peer_id in self._answered else SILENT
            self._end_if_complete()
        finally:
            for answer in asked.values():
                answer.cancel()

    async def _something_happens(self) -> None:
        """Somebody comes, calls for the first time, or answers; or it is time to ask again."""
        now = self._now()
        rest_s = min(self._ask_at, self._ends_at, *((self._calls_at,) if self._calls_at > now else ())) - now
        alarm = asyncio.get_running_loop().call_later(max(0.001, rest_s), self._news.set)
        try:
            await self._news.wait()
        finally:
            alarm.cancel()
        self._news.clear()

    def _hear(self, asked: dict[str, asyncio.Task[Answer]]) -> None:
        for peer_id in [peer_id for peer_id, answer in asked.items() if answer.done()]:
            task = asked.pop(peer_id)
            if task.cancelled() or task.exception() is not None:
                self._answered.discard(peer_id)
                continue
            self._answered.add(peer_id)
            answer = task.result()
            if answer.hosts and peer_id in self.earlier:
                self._end(Gathering(b"", (), {}, moved_to=peer_id))
            if answer.reason != UNREACHABLE:
                self._gone_at.pop(peer_id, None)
            elif self._now() - self._gone_at.setdefault(peer_id, self._now()) < self.back_s:
                continue
            if answer.reason and peer_id not in self.arrived:
                self.absent[peer_id] = answer.reason
                self._ahead = max(self._ahead, answer.round)
        self._end_if_complete()

    def _ask_the_missing(self, asked: dict[str, asyncio.Task[Answer]]) -> None:
        """Ask those that have not been asked for a while, and call all as soon as the first caller has come."""
        now = self._now()
        calls = now >= self._calls_at
        if calls and not self._has_called:
            self._has_called = True
            for answer in asked.values():
                answer.cancel()  # it was asked, but not called
            asked.clear()
        elif now < self._ask_at:
            return
        self._ask_at = now + PROBE_S
        for peer_id in self._missing() - asked.keys():
            asked[peer_id] = asyncio.create_task(self.probe(peer_id, calls))
            asked[peer_id].add_done_callback(lambda _: self._news.set())


def settle(gathering: Gathering, stage: Stage, *, own: str, smallest: int, names: Mapping[str, str]) -> None:
    """Whether this peer averages with those that have met.

    Args:
        own: this peer's id.
        smallest: a group of fewer does not average.
        names: peer id -> name.

    Raises:
        Behind: it came too late, and the others are at another round.
        NoRound: it does not average in this one.
    """
    if not stage.is_final and stage.position == 0:
        came_late = own not in gathering.present
        if came_late or (gathering.present == (own,) and gathering.ahead >= stage.round):
            raise Behind(max(gathering.ahead, stage.round + 1))
    if own not in gathering.present:
        raise NoRound("alone", "came after its group had begun")
    if gathering.absent and len(gathering.present) < smallest:
        raise NoRound("alone", f"no group of {smallest}: {'; '.join(causes_of(gathering.absent, names))}")


def causes_of(absent: Mapping[str, str], names: Mapping[str, str]) -> list[str]:
    """The groupmates that were missing and why, in words."""
    return sorted(f"{names.get(peer_id, peer_id)} {why}" for peer_id, why in absent.items())
