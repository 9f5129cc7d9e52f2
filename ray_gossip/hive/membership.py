"""The members of the swarm, without a coordinator: each peer declares itself in the DHT under `<run_id>.members`.

A declaration expires unless renewed: dying needs no announcement, leaving has one. A newcomer states the round from
which it counts, far enough ahead that everybody has seen it by then. All peers with the same view compute the same
groups.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from time import monotonic
from typing import Any

import hivemind
from hivemind.p2p import PeerID
from hivemind.utils import MAX_DHT_TIME_DISCREPANCY_SECONDS, ValueWithExpiration, get_dht_time

from ray_gossip.errors import SwarmError
from ray_gossip.gossip.charter import Charter
from ray_gossip.gossip.consensus import ConsensusControl
from ray_gossip.gossip.members import MOST_AHEAD, REFRESH_S, Member, View, believable, median_round
from ray_gossip.hive.charter import declare_charter
from ray_gossip.hive.reunion import Reunion

MEMBER_TTL_S = 15.0  # a dead peer counts as a member for this long; for twice that where declaring took 5 s
REDECLARE_S = 5.0
_LATELY_S, _SEVERAL = 120.0, 2  # when all of at least so many vanish, this peer is cut off
_LATER_S = 1e-3  # a DHT keeps the declaration that expires last, which has to be the newest
_CHANCES = 3  # to renew a declaration before it expires
_LONGEST_S = 8 * MEMBER_TTL_S  # that a declaration may hold: who dies is a member no longer than that
_OWN_LONGEST_S = _LONGEST_S - MAX_DHT_TIME_DISCREPANCY_SECONDS  # as those take it whose clock is behind
_AHEAD = 2  # rounds; by then all others have seen a new declaration
_MOST_PER_S = 100.0  # rounds of a swarm
_ANEW_S = 600.0  # from one round from which `furthest` is reckoned to the next
_READ_S = 1.0  # a round waits this long for a fresh view: the DHT takes 3 s when it asks a peer that hangs


def members_key(run_id: str) -> str:
    return f"{run_id}.members"


def declarations(record: ValueWithExpiration[Any] | None) -> Iterator[tuple[Member, float]]:
    """The members that a record of the DHT names, each with the DHT time at which its declaration expires."""
    latest = get_dht_time() + _LONGEST_S
    values = record.value if record is not None and isinstance(record.value, dict) else {}
    for key, entry in values.items():
        member = Member.from_wire(PeerID(key).to_base58() if isinstance(key, bytes) else "", entry.value)
        if member is not None and entry.expiration_time <= latest:
            yield member, entry.expiration_time


def view_of(
    declared: Iterable[tuple[Member, float]], own: Member, *, furthest: int = MOST_AHEAD, has_driver: bool = True
) -> View:
    """From the members' declarations, plus this peer's own, which may not have spread yet. A peer that is lost leaves a
    declaration, which counts no more once its successor has declared itself.

    Args:
        furthest: who says that it is in a later round than this is not believed.
        has_driver: who else would start successors? Without one, nobody is believed to be another's.
    """
    others = [member for member, _ in declared if member.peer_id != own.peer_id]
    others = believable(others, furthest=furthest)
    members = [own, *(each for each in others if has_driver or not each.incarnation)]
    latest: dict[int, int] = {}
    for member in members:
        latest[member.peer_index] = max(member.incarnation, latest.get(member.peer_index, 0))
    current = [each for each in members if each.incarnation == latest[each.peer_index] or each is own]
    return View(tuple(sorted(current, key=lambda member: (member.peer_index, member.peer_id))))


class Membership:
    """This peer's declaration and its view of the others. Lives in the sidecar.

    Args:
        control: if rounds are held only when they are needed.
    """

    def __init__(
        self, dht: hivemind.DHT, *, charter: Charter, own: Member, control: ConsensusControl | None = None
    ) -> None:
        self._dht, self._charter, self.own, self._control = dht, charter, own, control
        self._key = members_key(charter.run_id)
        self._subkey = PeerID.from_base58(own.peer_id).to_bytes()
        self.view = View()
        self._declared: dict[str, tuple[Member, float]] = {}  # by peer id: what the view is made of
        self._was_at: tuple[int, float] | None = None  # a round of this peer, and when; None: none yet
        self._is_at = (-1, 0.0)  # the same, later
        self._read_at = float("-inf")
        self._vanished: dict[str, tuple[Member, float]] = {}  # by peer id; when its declaration has expired
        self._reunion = Reunion(dht)
        self._took_s = 0.0  # to declare this peer
        self._expires_at = 0.0  # DHT time; of the last declaration
        self._held_until = 0.0  # the same, of the last one that the DHT holds
        self._renewing: asyncio.Task[None] | None = None
        self._declaring: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[View] | None = None

    async def join(self, from_round: int, *, began_as: str = "") -> View:
        """Declare this peer, and go on doing so every few seconds for as long as this process lives: it ends with the
        training process, however long that evaluates or saves between two local steps."""
        self.own = replace(self.own, from_round=from_round, round=from_round - 1, began_as=began_as)
        self._was_at = self._is_at = (from_round, monotonic())
        await self._declare()
        await declare_charter(self._dht, self._charter)
        if self._renewing is None:
            self._renewing = asyncio.create_task(self._renew())
        return await self.read()

    async def join_again(self, *, called: int, began_as: str, before: Sequence[Member] = ()) -> int:
        """Declare a peer that was declared by another process, which has died.

        Args:
            called: the latest round to which this peer was called.
            before: the members that the other process saw.

        Returns:
            The first round in which it counts. While what was declared for it holds, the others have never left it out.
        """
        expires_at = get_dht_time() + MEMBER_TTL_S
        self._declared = {member.peer_id: (member, expires_at) for member in before}  # until they are heard of
        view = await self.read()
        from_round = max(view.latest_round, called) + _AHEAD
        declared, self._expires_at = self._declared.get(self.own.peer_id, (self.own, 0.0))
        if self._expires_at - get_dht_time() > MAX_DHT_TIME_DISCREPANCY_SECONDS:
            from_round = max(declared.from_round, from_round - _AHEAD + 1)
        await self.join(from_round, began_as=began_as)
        return from_round

    async def leave(self) -> None:
        """Announce the departure."""
        self.own = replace(self.own, left=True)
        if self._renewing is not None:
            self._renewing.cancel()
        await self._declare()

    async def tell(self, note: bytes) -> View:
        """Declare what this peer has to tell the others, and read what they have told."""
        self.own = replace(self.own, note=note)
        await self._declare()
        return await self.read()

    async def reunite(self, peer_ids: Sequence[str]) -> None:
        """Let these nodes of the DHT know this one, and what it declares."""
        await self._reunion.meet(peer_ids)
        if self._renewing is not None:
            await self._declare()

    async def read(self) -> View:
        """Ask the DHT for the members. Its answer lacks one when a node of it has not answered in time; so a member
        that has been seen stays until the declaration expires."""
        record = await self._dht.get(self._key, latest=True, return_future=True)
        now = get_dht_time()
        answered = {each[0].peer_id: each for each in declarations(record)}
        if self.own.peer_id in answered:
            self._held_until = max(self._held_until, answered[self.own.peer_id][1])
        known = self._declared | answered
        self._declared = {peer_id: each for peer_id, each in known.items() if each[1] > now}
        expired = known.keys() - self._declared.keys() - {self.own.peer_id}
        vanished = [peer_id for peer_id in expired if not known[peer_id][0].left]
        self._vanished |= {peer_id: (known[peer_id][0], now) for peer_id in vanished}
        self._reunion.note(present=self._declared, vanished=vanished)
        self._reunion.call([*(self._declared.keys() - answered.keys() - {self.own.peer_id}), *vanished])
        self._vanished = {
            peer_id: (member, at)
            for peer_id, (member, at) in self._vanished.items()
            if now - at < _LATELY_S and peer_id not in self._declared
        }
        self._reckon_anew()
        has_driver = self._charter.has_driver
        self.view = view_of(self._declared.values(), self.own, furthest=self.furthest, has_driver=has_driver)
        self._read_at = monotonic()
        return self.view

    @property
    def furthest(self) -> int:
        """The latest round in which the swarm can be. Since this peer joined, by where it was itself some minutes ago,
        and by its own clock: nobody has gone on faster than `_MOST_PER_S` from there. All peers reckon
        nearly alike, so that wherever one of them is taken, the others follow it. A newcomer goes by the members."""
        if self._was_at is None:
            return median_round(member for member, _ in self._declared.values()) + MOST_AHEAD
        return _furthest_from(*self._was_at)

    def _reckon_anew(self) -> None:
        """From a later round, but not while somebody says that it is farther than this peer would believe then: an
        honest one that was taken there is followed as soon as this peer's clock allows it."""
        is_over = self._was_at is not None and monotonic() > self._is_at[1] + _ANEW_S
        if is_over and all(member.round <= _furthest_from(*self._is_at) for member, _ in self._declared.values()):
            self._was_at, self._is_at = self._is_at, (self.own.round, monotonic())

    @property
    def is_hermit(self) -> bool:
        """Whether this peer sees nobody, where several were lately that have not said goodbye: then this peer was cut
        off, not they."""
        return len(self.view.present) <= 1 and len(self._vanished) >= _SEVERAL

    @property
    def silent(self) -> tuple[str, ...]:
        """Names of the members whose declaration has expired lately without a goodbye: dead, or about to be back. An
        index may be another peer's by now."""
        names = {member.name for member, _ in self._vanished.values()}
        return tuple(sorted(names - {member.name for member in self.view.present}))

    @property
    def is_superseded(self) -> bool:
        """Whether another process is this peer by now: this one was taken for dead."""
        return any(
            member.peer_index == self.own.peer_index and member.incarnation > self.own.incarnation
            for member in self.view.members
        )

    @property
    def has_expired(self) -> bool:
        """Whether the others leave this peer out, because the DHT has not taken its declaration for too long."""
        return self._held_until < get_dht_time()

    async def at_round(self, round: int, *, local_step: int, summary: bytes = b"") -> View:
        """The view for a round that begins now; the last one if the DHT is slow.

        This peer's own progress is declared in the background.

        Args:
            summary: of this peer's parameters; for consensus control, which sees nothing in an old view.
        """
        if self._renewing is not None and self._renewing.done():
            self._renewing.result()  # raises what has ended it: the others would take this peer for dead
        self.own = replace(self.own, round=round, local_step=local_step, summary=summary)
        if self._control is not None or monotonic() - self._read_at > REFRESH_S:
            if self._declaring is None or self._declaring.done():
                self._declaring = asyncio.create_task(self._declare())
            if self._reading is None or self._reading.done():
                self._reading = asyncio.create_task(self.read())
                awaited = {self._reading, self._declaring} if self.has_expired else {self._reading}
                await asyncio.wait(awaited, timeout=_READ_S)
        if self.is_superseded:
            raise SwarmError("the swarm took this peer for dead, and another process has taken its place")
        return self.view

    @property
    def stretch(self) -> int:
        """Consensus control: how many intervals the swarm lets pass between two rounds."""
        others = (member for member in self.view.present if member.peer_id != self.own.peer_id)
        return View((*others, self.own)).stretch

    def control_consensus(self) -> None:
        """Once a round: adapt what this peer proposes."""
        if self._control is not None:
            self._control.begin(self.view.distance, present=self.stretch)
            self.own = replace(self.own, stretch=self._control.proposal)

    async def _declare(self) -> None:
        started = monotonic()
        self._expires_at = expires_at = max(get_dht_time() + self._ttl_s, self._expires_at + _LATER_S)
        was_taken = await self._dht.store(
            self._key,
            subkey=self._subkey,
            value=self.own.to_wire(),
            expiration_time=expires_at,
            return_future=True,
        )
        if was_taken:  # as the last node to answer says: one that refuses hides nobody, see `read`
            self._held_until = max(self._held_until, expires_at)
        self._took_s = monotonic() - started

    @property
    def _ttl_s(self) -> float:
        """Slow is not dead: where it takes long to declare oneself, a declaration holds longer."""
        return min(MEMBER_TTL_S + _CHANCES * self._took_s, _OWN_LONGEST_S)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(REDECLARE_S)
            self._reunion.call_some()
            await self._declare()
            await declare_charter(self._dht, self._charter)


def _furthest_from(round: int, at: float) -> int:
    """The latest round in which a swarm can be that was in this one then, by the monotonic clock."""
    return round + MOST_AHEAD + int(_MOST_PER_S * (monotonic() - at))
