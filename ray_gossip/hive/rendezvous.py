"""How a peer gets to its group's meeting, and how it hosts one for others.

Two calls between averager processes: `rpc_meet` (come to the meeting that you host) and `rpc_coming` (are you still
coming to this one?). Both live on the averager, which is what hivemind registers with libp2p, and end here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

import msgpack
from hivemind.p2p import P2PDaemonError, P2PHandlerError
from hivemind.proto.averaging_pb2 import BEGIN_ALLREDUCE, NO_CODE, JoinRequest, MessageFromLeader

from ray_gossip.hive.meeting import PROBE_S, Gathering, Meeting

Stage = tuple[int, int]  # round, and which of its all-reduces: only exact rounds have several

ANSWER_S = 5.0  # a living peer answers a call that needs no waiting within this time, on busy cores too
_PROBE_ANSWER_S = 1.0  # a missing member that does not answer so soon is asked again: it may be busy
_KEPT_S = 60.0  # an ended meeting is remembered for latecomers this much longer than it waits
_UNREACHABLE = "could not be reached"
_OTHER_MODEL = "averages tensors of another size: not the same model"
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
        wait_s: how long a meeting of this stage waits for those who are late.
        stub: how to call another peer.
    """

    def __init__(
        self, *, peer_id: str, schema_hash: bytes, wait_s: Callable[[Stage], float], stub: Callable[[str], Stub]
    ) -> None:
        self._peer_id, self._schema_hash, self._wait_s, self._stub = peer_id, schema_hash, wait_s, stub
        self._stage: Stage = (-1, 0)
        self._key = ""
        self._has_met = False  # the meeting at this stage is over for this peer
        self._hosted: dict[str, Meeting] = {}

    def go_to(self, stage: Stage, group: Sequence[str]) -> None:
        """From now on others hear that this peer is at this stage, in this group."""
        self._stage, self._key, self._has_met = stage, _key(stage, group), False

    async def attend(self, stage: Stage, group: Sequence[str], *, excuse: str, anchor: int) -> Gathering:
        """Meet at the first host in the group's order that answers; waits as long as the meeting does.

        Args:
            group: peer ids, in the order in which they serve as host.
            excuse: not empty: this peer does not take part, and says why, so that nobody waits for it.

        Raises:
            NoMeeting: nobody could be reached, or the host does not answer.
        """
        try:
            return await self._attend(stage, group, excuse, anchor)
        finally:
            self._has_met = True

    async def _attend(self, stage: Stage, group: Sequence[str], excuse: str, anchor: int) -> Gathering:
        request = JoinRequest(
            schema_hash=self._schema_hash,
            group_key=_key(stage, group),
            gather=msgpack.packb([stage, group, excuse, anchor]),
        )
        for host in group:
            if host == self._peer_id:
                return await self._meeting(stage, group).attend(host, excuse, anchor)
            try:
                if not await self._can_host(host, stage, request.group_key):
                    continue
                wait_s = self._wait_s(stage) + ANSWER_S + len(group) * PROBE_S
                answer = await self._stub(host).rpc_meet(request, timeout=wait_s)
            except asyncio.TimeoutError:
                raise NoMeeting("the host of the meeting did not answer in time") from None
            except GONE:
                continue
            present, absent, anchors = msgpack.unpackb(answer.gathered[0])
            return Gathering(answer.group_id, tuple(present), absent, frozenset(anchors))
        raise NoMeeting("no groupmate could be reached")

    async def answer_meet(self, request: JoinRequest, guest: str) -> MessageFromLeader:
        """A groupmate comes to a meeting that this peer hosts; the answer says who averages together."""
        (round, turn), group, excuse, anchor = msgpack.unpackb(request.gather)
        gathering = await self._meeting((round, turn), group).attend(guest, excuse, anchor)
        return MessageFromLeader(
            code=BEGIN_ALLREDUCE,
            group_id=gathering.group_id,
            gathered=[msgpack.packb([gathering.present, gathering.absent, list(gathering.anchors)])],
        )

    async def find_gone(self, peer_ids: Sequence[str]) -> list[str]:
        """Those of them that refuse to be called; who is merely silent may be busy."""

        async def is_gone(peer_id: str) -> bool:
            try:
                answer = await self._ask_whether_coming(peer_id, self._stage, self._key, within_s=_PROBE_ANSWER_S)
            except asyncio.TimeoutError:
                return False
            return answer == _UNREACHABLE

        are_gone = await asyncio.gather(*map(is_gone, peer_ids))
        return [peer_id for peer_id, gone in zip(peer_ids, are_gone, strict=True) if gone]

    def answer_coming(self, request: JoinRequest, *, has_left: bool) -> MessageFromLeader:
        """Whether this peer is still coming to the meeting `group_key`: `group_id` is empty, or says why not."""
        if has_left:
            reason = "has left"
        elif request.schema_hash != self._schema_hash:
            reason = _OTHER_MODEL
        else:
            reason = self._why_not_coming(tuple(msgpack.unpackb(request.gather)), request.group_key)
        return MessageFromLeader(code=NO_CODE, group_id=reason.encode())

    def _why_not_coming(self, stage: Stage, key: str) -> str:
        if self._stage > stage:
            return "is already in a later round"
        if self._stage == stage and self._key != key:
            return "sees other members this round"
        if self._stage == stage and self._has_met:
            return "has met already"
        return ""

    def _meeting(self, stage: Stage, group: Sequence[str]) -> Meeting:
        """The meeting of this group, opened by whoever comes first; ended ones stay a while for latecomers."""
        key = _key(stage, group)
        if key not in self._hosted:
            for old_key in [k for k, m in self._hosted.items() if m.age_s > m.wait_s + _KEPT_S]:
                del self._hosted[old_key]

            async def probe(peer_id: str) -> str | None:
                try:
                    return await self._ask_whether_coming(peer_id, stage, key, within_s=_PROBE_ANSWER_S)
                except asyncio.TimeoutError:
                    return None  # frozen or only busy: who waits for it can tell no difference

            self._hosted[key] = Meeting(frozenset(group), probe, self._wait_s(stage))
        return self._hosted[key]

    async def _can_host(self, peer_id: str, stage: Stage, key: str) -> bool:
        within_s = self._wait_s(stage) / 2  # leaves as much to meet elsewhere
        try:
            answer = await self._ask_whether_coming(peer_id, stage, key, within_s=within_s)
        except asyncio.TimeoutError:
            return False
        return answer not in (_UNREACHABLE, _OTHER_MODEL)

    async def _ask_whether_coming(self, peer_id: str, stage: Stage, key: str, *, within_s: float) -> str | None:
        """Why this peer is not coming; None: it is.

        Raises:
            asyncio.TimeoutError: no answer, though its machine did not refuse the call.
        """
        if peer_id == self._peer_id:
            return self._why_not_coming(stage, key) or None
        request = JoinRequest(schema_hash=self._schema_hash, group_key=key, gather=msgpack.packb(stage))
        try:
            answer = await self._stub(peer_id).rpc_coming(request, timeout=within_s)
        except GONE:
            return _UNREACHABLE
        reason: str = answer.group_id.decode()
        return reason or None


def _key(stage: Stage, group: Sequence[str]) -> str:
    return f"{stage[0]}.{stage[1]}:{'.'.join(sorted(group))}"
