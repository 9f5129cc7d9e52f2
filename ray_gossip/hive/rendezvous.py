"""How a peer gets to its group's meeting, and how it hosts one for others.

Two calls between sidecars: `rpc_meet` (come to the meeting that you host) and `rpc_coming` (are you still
coming to this one?). Both live on the averager, which is what hivemind registers with libp2p, and end here.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from typing import Protocol

from hivemind.p2p import P2PDaemonError, P2PHandlerError
from hivemind.proto.averaging_pb2 import BEGIN_ALLREDUCE, NO_CODE, JoinRequest, MessageFromLeader

from ray_gossip.causes import ANSWERS_NONSENSE, HAS_LEFT, IS_DONE, OTHER_MODEL, OTHER_VIEW, SILENT, UNREACHABLE
from ray_gossip.gossip.meeting import Answer, Arrival, Gathering, Meeting
from ray_gossip.gossip.messages import Answering, Arriving, Asking, Gathered, Malformed, from_wire, to_wire
from ray_gossip.gossip.round import Stage

ANSWER_S = 5.0  # a living peer answers a call that needs no waiting within this time, on busy cores too
_PROBE_ANSWER_S = 1.0  # a missing member that does not answer so soon is asked again: it may be busy
_SILENT_ANSWER_S = 0.5  # of one that was silent the last time: it need not be waited for again
_HOST_ANSWER_S = 2.0  # a host that does not answer so soon is replaced
_TOLD = 2  # others, picked at random, that a peer tells of a round when it first hears of it
_BACK_S = 8.0  # for which a final round waits for a member whose network side has died: another takes its place
_MOST_HOSTED = 100  # open meetings: a round has one
_ID_BYTES = 64  # of a group
_KEPT_S = 60.0  # an ended meeting is remembered for latecomers this much longer than it takes
GONE = (P2PDaemonError, P2PHandlerError, ConnectionError)


class Stub(Protocol):
    """What another peer's averager answers to."""

    async def rpc_meet(self, request: JoinRequest, timeout: float | None = None) -> MessageFromLeader: ...

    async def rpc_coming(self, request: JoinRequest, timeout: float | None = None) -> MessageFromLeader: ...


class NoMeeting(Exception):
    """This peer's group could not meet; the message says why."""


class Rendezvous:
    """The meetings that one peer attends and hosts.

    Args:
        peer_id: this peer's, base58.
        schema_hash: of the tensors that are averaged; nobody waits for peers that average others.
        cap_s: the longest that a meeting of this stage may take.
        stub: how to call another peer.
        others: peer ids of the swarm, this peer's among them or not.
        on_call: told the stage to which a groupmate calls this peer; says why it cannot come soon, if it cannot.
        furthest: the latest round to which one peer can call this one.
    """

    def __init__(
        self,
        *,
        peer_id: str,
        schema_hash: bytes,
        cap_s: Callable[[Stage], float],
        stub: Callable[[str], Stub],
        others: Callable[[], Sequence[str]],
        on_call: Callable[[Stage], str],
        furthest: Callable[[], int],
    ) -> None:
        self._peer_id, self._schema_hash, self._cap_s, self._stub = peer_id, schema_hash, cap_s, stub
        self._others, self._on_call, self._furthest = others, on_call, furthest
        self._stage = Stage(is_final=False, round=-1)
        self._key = ""
        self._has_met = False  # the meeting at this stage is over for this peer
        self._hosted: dict[str, Meeting] = {}
        self._heard_of = -1  # the latest round that is known to have begun
        self._spreading: set[asyncio.Task[None]] = set()
        self._silent: set[str] = set()  # peers that have let a call go unanswered, and have not been heard of since

    @property
    def round(self) -> int:
        """The round at which this peer is."""
        return self._stage.round

    def go_to(self, stage: Stage, group: Sequence[str]) -> None:
        """From now on others hear that this peer is at this stage, in this group."""
        self._stage, self._key, self._has_met = stage, _key(stage, group), False

    async def attend(self, stage: Stage, group: Sequence[str], arrival: Arrival) -> Gathering:
        """Meet at the first host in the group's order that answers; waits as long as the meeting does.

        Args:
            group: peer ids, in the order in which they serve as host.

        Raises:
            NoMeeting: nobody could be reached, or the host does not answer.
        """
        if arrival.due_in_s == 0:
            self._hear_of(stage)
        try:
            gathering = await self._attend(stage, group, arrival)
        finally:
            self._has_met = True
        self._silent |= {peer_id for peer_id, why in gathering.absent.items() if why == SILENT}
        return gathering

    async def _attend(self, stage: Stage, group: Sequence[str], arrival: Arrival) -> Gathering:
        told = Arriving(
            stage, tuple(group), arrival.excuse, arrival.anchor, float(arrival.due_in_s), float(arrival.wait_s)
        )
        request = JoinRequest(schema_hash=self._schema_hash, group_key=_key(stage, group), gather=to_wire(told))
        for host in group:
            if host != self._peer_id and not await self._can_host(host, stage, request.group_key):
                continue
            try:
                gathering = await self._attend_at(host, stage, group, arrival, request)
                for _ in group:
                    if not gathering.moved_to:
                        return gathering
                    gathering = await self._attend_at(gathering.moved_to, stage, group, arrival, request)
            except GONE:
                continue
        raise NoMeeting("no groupmate could be reached")

    async def _attend_at(
        self, host: str, stage: Stage, group: Sequence[str], arrival: Arrival, request: JoinRequest
    ) -> Gathering:
        if host == self._peer_id:
            return await self._meeting(stage, group).attend(host, arrival)
        limit_s = min(self._cap_s(stage), arrival.due_in_s + arrival.wait_s) + ANSWER_S
        try:
            answer = await self._stub(host).rpc_meet(request, timeout=limit_s)
        except asyncio.TimeoutError:
            self._silent.add(host)
            raise NoMeeting("the host of the meeting did not answer in time") from None
        return _gathering(answer, group)

    async def answer_meet(self, request: JoinRequest, guest: str) -> MessageFromLeader:
        """A groupmate comes to a meeting that this peer hosts; the answer names those that average together.

        Raises:
            ValueError: it averages another model, is not expected here, or says nothing that can be understood.
        """
        if request.schema_hash != self._schema_hash:
            raise ValueError(f"{guest} {OTHER_MODEL}")
        said = from_wire(Arriving, request.gather)
        if not {guest, self._peer_id} <= {*said.group}:
            raise ValueError(f"{guest} is not in this group")
        self._silent.discard(guest)
        arrival = Arrival(excuse=said.excuse, anchor=said.anchor, due_in_s=said.due_in_s, wait_s=said.wait_s)
        found = await self._meeting(Stage(*said.stage), said.group).attend(guest, arrival)
        told = Gathered(found.present, found.absent, tuple(found.anchors), found.ahead, found.moved_to)
        return MessageFromLeader(code=BEGIN_ALLREDUCE, group_id=found.group_id, gathered=[to_wire(told)])

    async def find_gone(self, peer_ids: Sequence[str]) -> list[str]:
        """Those of them that refuse to be called; one that is merely silent may be busy."""

        async def is_gone(peer_id: str) -> bool:
            try:
                answer = await self._ask(peer_id, self._stage, self._key, within_s=_PROBE_ANSWER_S)
            except asyncio.TimeoutError:
                return False
            return answer.reason == UNREACHABLE

        are_gone = await asyncio.gather(*map(is_gone, peer_ids))
        return [peer_id for peer_id, gone in zip(peer_ids, are_gone, strict=True) if gone]

    def answer_coming(self, request: JoinRequest, guest: str, *, has_left: bool) -> MessageFromLeader:
        """Whether this peer is still coming to the meeting `group_key`; it may be called to it."""
        self._silent.discard(guest)
        said = from_wire(Asking, request.gather)
        hosts = False  # for this guest
        if has_left:
            answer = Answer(HAS_LEFT)
        elif request.schema_hash != self._schema_hash:
            answer = Answer(OTHER_MODEL)
        else:
            answer = self._own_answer(Stage(*said.stage), request.group_key, said.calls)
            hosts = self._hosts(request.group_key)
        told = Answering(answer.reason, answer.round, hosts)
        return MessageFromLeader(code=NO_CODE, gathered=[to_wire(told)])

    def _own_answer(self, stage: Stage, key: str, calls: bool) -> Answer:
        if self._stage > stage:
            if self._stage.is_final:
                return Answer(IS_DONE)
            return Answer("is already in a later round", self._stage.round)
        if self._stage == stage and key not in ("", self._key):
            return Answer(OTHER_VIEW, stage.round)
        if self._stage == stage and self._has_met:
            return Answer("has met already", stage.round)
        if calls and self._stage < stage and stage.round <= self._furthest():
            self._hear_of(stage)
            return Answer(self._on_call(stage))
        return Answer()

    def _hear_of(self, stage: Stage) -> None:
        """A round has begun: the meeting calls this peer's group to it, and this peer a few others, who do the same.
        Else groups of slow peers would never be called, and meet so seldom that the swarm falls apart."""
        if not stage.is_final and self._heard_of < stage.round:
            self._heard_of = stage.round
            others = [peer_id for peer_id in self._others() if peer_id != self._peer_id]
            for peer_id in random.sample(others, min(_TOLD, len(others))):
                task = asyncio.create_task(self._tell(peer_id, stage))
                self._spreading.add(task)
                task.add_done_callback(self._spreading.discard)

    async def _tell(self, peer_id: str, stage: Stage) -> None:
        with contextlib.suppress(asyncio.TimeoutError):  # an epidemic needs no single one of its messages
            await self._ask(peer_id, stage, "", within_s=_PROBE_ANSWER_S, calls=True)

    def _hosts(self, key: str) -> bool:
        return key in self._hosted and not self._hosted[key].has_ended

    def _meeting(self, stage: Stage, group: Sequence[str]) -> Meeting:
        """The meeting of this group, opened by the first to come; ended ones stay a while for latecomers."""
        key = _key(stage, group)
        if key not in self._hosted:
            for old_key in [k for k, m in self._hosted.items() if m.has_ended and m.age_s > _KEPT_S]:
                del self._hosted[old_key]
            if sum(not meeting.has_ended for meeting in self._hosted.values()) >= _MOST_HOSTED:
                raise ValueError(f"{_MOST_HOSTED} meetings are open here")

            async def probe(peer_id: str, calls: bool) -> Answer:
                was_silent = peer_id in self._silent
                within_s = _SILENT_ANSWER_S if was_silent else _PROBE_ANSWER_S
                try:
                    return await self._ask(peer_id, stage, key, within_s=within_s, calls=calls)
                except asyncio.TimeoutError:
                    if was_silent:
                        return Answer(SILENT)
                    raise  # frozen or only busy: to a peer that waits for it there is no difference

            earlier = frozenset(group[: group.index(self._peer_id)])
            back_s = _BACK_S if stage.is_final else 0.0
            self._hosted[key] = Meeting(frozenset(group), probe, self._cap_s(stage), earlier, back_s)
        return self._hosted[key]

    async def _can_host(self, peer_id: str, stage: Stage, key: str) -> bool:
        within_s = _SILENT_ANSWER_S if peer_id in self._silent else _HOST_ANSWER_S
        try:
            answer = await self._ask(peer_id, stage, key, within_s=within_s)
        except asyncio.TimeoutError:
            self._silent.add(peer_id)
            return False
        return answer.reason not in (UNREACHABLE, OTHER_MODEL, ANSWERS_NONSENSE)

    async def _ask(self, peer_id: str, stage: Stage, key: str, *, within_s: float, calls: bool = False) -> Answer:
        """Whether this peer is coming.

        Raises:
            asyncio.TimeoutError: no answer, though its machine did not refuse the call.
        """
        if peer_id == self._peer_id:
            return self._own_answer(stage, key, calls)
        request = JoinRequest(schema_hash=self._schema_hash, group_key=key, gather=to_wire(Asking(stage, calls)))
        try:
            answer = await self._stub(peer_id).rpc_coming(request, timeout=within_s)
        except GONE:
            return Answer(UNREACHABLE)
        self._silent.discard(peer_id)
        try:
            said = from_wire(Answering, _only(answer))
        except Malformed:
            return Answer(ANSWERS_NONSENSE)
        return Answer(said.reason, said.round, said.hosts)


def _only(answer: MessageFromLeader) -> bytes:
    wire: bytes = answer.gathered[0] if len(answer.gathered) == 1 else b""
    return wire


def _gathering(answer: MessageFromLeader, group: Sequence[str]) -> Gathering:
    """What the host of a meeting of this group answers. Raises NoMeeting."""
    try:
        said = from_wire(Gathered, _only(answer))
        named = {*said.present, *said.absent} | ({said.moved_to} if said.moved_to else set())
        if not named <= {*group} or len({*said.present}) < len(said.present) or len(answer.group_id) > _ID_BYTES:
            raise Malformed("it names others than the group")
    except Malformed as error:
        raise NoMeeting(f"the host of the meeting {ANSWERS_NONSENSE}: {error}") from None
    return Gathering(answer.group_id, said.present, said.absent, frozenset(said.anchors), said.ahead, said.moved_to)


def _key(stage: Stage, group: Sequence[str]) -> str:
    return f"{stage.is_final:d}.{stage.round}.{stage.position}:{'.'.join(sorted(group))}"
