"""The averager process: scheduled rounds on top of hivemind's `DecentralizedAverager`.

Everything about a round except copying parameters happens here, in the process that hivemind forks for averaging:
reading the members, meeting the group, the all-reduce, the sketches. The training process sends one message when a
round begins and finds the result in a future, so that local steps feel nothing of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
import torch
from hivemind import DHT, DecentralizedAverager
from hivemind.averaging.group_info import GroupInfo
from hivemind.averaging.partition import DEFAULT_PART_SIZE_BYTES
from hivemind.p2p import P2PContext, P2PDaemonError, P2PHandlerError, PeerID
from hivemind.proto import averaging_pb2
from hivemind.utils import MPFuture, get_dht_time

from ray_gossip.config import GossipConfig
from ray_gossip.hive.allreduce import StrictAllReduce, Traffic
from ray_gossip.hive.meeting import PROBE_S, Gathering, Meeting
from ray_gossip.hive.membership import MEMBER_TTL_S, REDECLARE_S, Member, View, members_key, read_view
from ray_gossip.hive.process import AlwaysForked
from ray_gossip.mixing import Sketch
from ray_gossip.records import Outcome
from ray_gossip.schedule import group_of

FINAL_ROUND = 2**40  # rounds from here on are final ones: everybody in one group
_REFRESH_S = 0.5  # a view of the members younger than this is not read again
_ANSWER_S = 2.0  # a living peer answers a call that needs no waiting within this time, on busy cores too
_SHUTDOWN_S = 1.0  # grace; a killed averager leaves nothing behind
_MIN_DEADLINE_S = 2.0  # learned all-reduce deadlines never fall below this
_SLACK = 4.0  # a learned deadline is this many times the slowest of the recent all-reduces


@dataclass(frozen=True, kw_only=True)
class RoundResult:
    """What the averager process says about a round. The delta, if any, is in shared memory."""

    outcome: Outcome
    cause: str
    group: tuple[int, ...]  # peer indices
    matchmaking_s: float
    allreduce_s: float
    bytes_sent: int
    moved: float
    sketch_before: tuple[float, ...]
    sketch_after: tuple[float, ...]
    swarm_round: int  # the latest round that any member has begun


class _NoRound(Exception):
    """This round has ended without averaging, for this outcome and cause."""

    def __init__(self, outcome: Outcome, cause: str, group: Sequence[int] = ()) -> None:
        super().__init__(cause)
        self.outcome, self.cause, self.group = outcome, cause, tuple(group)


class GossipAverager(AlwaysForked, DecentralizedAverager):
    """hivemind's averager with scheduled groups and honest outcomes.

    Args:
        state: flat float32 [size] in host memory, moved to shared memory: the snapshot.
        peer_index, from_round: how this peer declares itself.
    """

    _rpc_handlers = None  # hivemind caches these on the class; do not inherit the parent's
    _stub_type = None

    def __init__(
        self,
        state: torch.Tensor,
        dht: DHT,
        *,
        run_id: str,
        gossip: GossipConfig,
        final_s: float,
        seed: int,
        peer_index: int,
        **options: Any,
    ) -> None:
        self.gossip, self.final_s, self.seed, self.run_id = gossip, final_s, seed, run_id
        self.own = Member(dht.peer_id.to_base58(), peer_index, from_round=0, round=-1)
        self.delta = torch.zeros_like(state).share_memory_()
        self.heartbeat = torch.zeros(1, dtype=torch.int64).share_memory_()  # moves with every local step
        self.view = View()
        self._view_read = float("-inf")
        self._round, self._meeting_key = -1, ""
        self._meetings: dict[str, Meeting] = {}
        self._recent_allreduce_s: list[float] = []
        self._declaring: asyncio.Task[None] | None = None
        self._redeclaring: asyncio.Task[None] | None = None
        self._traffic = Traffic()
        self._sketch = Sketch(state.numel())
        super().__init__(
            [state],
            dht,
            prefix=run_id,
            start=False,
            allow_state_sharing=True,
            request_timeout=min(3.0, gossip.matchmaking_s / 2),
            min_matchmaking_time=gossip.matchmaking_s,
            shutdown_timeout=_SHUTDOWN_S,
            **options,
        )

    # ---- called from the training process -------------------------------------------------------------------------

    def declare(self, from_round: int) -> MPFuture[View]:
        """Declare this peer, from now on and every few seconds, for as long as its heartbeat moves."""
        return self._call("_join", from_round=from_round)

    def read_members(self) -> MPFuture[View]:
        """Who is in the swarm now, as far as this peer can see."""
        return self._call("_read_members")

    def gossip_round(self, round: int, *, alpha: float, weight: float = 1.0) -> MPFuture[RoundResult]:
        """Run one round on the snapshot; when it resolves to `averaged`, `delta` holds what to add."""
        return self._call("_gossip_round", round=round, alpha=alpha, weight=weight)

    def leave(self) -> MPFuture[None]:
        """Announce that this peer is going: others leave it out from the next round on."""
        return self._call("_leave")

    def _call(self, method: str, **arguments: Any) -> MPFuture[Any]:
        future: MPFuture[Any] = MPFuture()
        self._outer_pipe.send(("_answer", [method], {"arguments": arguments, "future": future}))
        return future

    # ---- in the averager process ----------------------------------------------------------------------------------

    async def _answer(self, method: str, *, arguments: dict[str, Any], future: MPFuture[Any]) -> None:
        try:
            future.set_result(await getattr(self, method)(**arguments))
        except Exception as error:  # a bug: it surfaces where the future is read
            future.set_exception(error)

    async def _join(self, from_round: int) -> View:
        self.own = Member(self.own.peer_id, self.own.peer_index, from_round, round=from_round - 1)
        await self._declare()
        self._redeclaring = asyncio.create_task(self._redeclare_while_alive())
        return await self._read_members()

    async def _leave(self) -> None:
        self.own = Member(self.own.peer_id, self.own.peer_index, self.own.from_round, self.own.round, left=True)
        if self._redeclaring is not None:
            self._redeclaring.cancel()
        await self._declare()

    async def _declare(self) -> None:
        await self.dht.store(
            members_key(self.run_id),
            subkey=self.peer_id.to_bytes(),
            value=self.own.to_wire(),
            expiration_time=get_dht_time() + MEMBER_TTL_S,
            return_future=True,
        )

    async def _redeclare_while_alive(self) -> None:
        """Renew the declaration while local steps go on: a hung trainer fades from the swarm like a dead one."""
        last_beat, moved_at = -1, time.monotonic()
        while True:
            await asyncio.sleep(REDECLARE_S)
            beat = int(self.heartbeat[0])
            if beat != last_beat:
                last_beat, moved_at = beat, time.monotonic()
            if time.monotonic() - moved_at < self.final_s:
                await self._declare()

    async def _read_members(self) -> View:
        record = await self.dht.get(members_key(self.run_id), latest=True, return_future=True)
        self.view, self._view_read = read_view(record, self.own), time.monotonic()
        return self.view

    async def _gossip_round(self, round: int, alpha: float, weight: float) -> RoundResult:
        started = time.monotonic()
        snapshot = self._averaged_tensors[0].numpy()
        before = self._sketch(snapshot)
        ended: _NoRound | None = None
        allreduce: StrictAllReduce | None = None
        met = started
        group: tuple[int, ...] = (self.own.peer_index,)
        cause, moved, after = "", 0.0, before
        self._pending_groups_registered.clear()  # groupmates may send parts before we know that the group is complete
        try:
            members = await self._begin(round)
            excuse = "" if np.isfinite(snapshot).all() else "its parameters are not finite"
            gathering = await self._meet(round, members, excuse)
            met = time.monotonic()
            names = {member.peer_id: member for member in members}
            group = tuple(sorted(names[peer_id].peer_index for peer_id in gathering.present))
            cause = "; ".join(f"{names[peer_id].name} {why}" for peer_id, why in sorted(gathering.absent.items()))
            allreduce = self._prepare(gathering, weight)
            moved, after = await self._allreduce(allreduce, alpha, names, before)
        except _NoRound as error:
            ended = error
        finally:
            self._pending_groups_registered.set()
        done = time.monotonic()
        if ended is None:
            self._recent_allreduce_s = [*self._recent_allreduce_s[-15:], done - met]
        return RoundResult(
            outcome=ended.outcome if ended else "averaged",
            cause="; ".join(filter(None, (ended.cause if ended else "", cause))),
            group=group if allreduce is not None else (self.own.peer_index,),
            matchmaking_s=(met if allreduce is not None else done) - started,
            allreduce_s=done - met if allreduce is not None else 0.0,
            bytes_sent=self._traffic.take(),
            moved=moved,
            sketch_before=tuple(before.tolist()),
            sketch_after=tuple(after.tolist()),
            swarm_round=min(self.view.latest_round, FINAL_ROUND - 1),
        )

    async def _begin(self, round: int) -> tuple[Member, ...]:
        """Take the swarm's view for this round; the declaration of the round travels in the background."""
        if round < FINAL_ROUND:
            self.own = Member(self.own.peer_id, self.own.peer_index, self.own.from_round, round)
        if time.monotonic() - self._view_read > _REFRESH_S:
            self._declaring = asyncio.create_task(self._declare())
            await self._read_members()
        return self.view.at(round)

    # ---- meeting the group ----------------------------------------------------------------------------------------

    async def _meet(self, round: int, members: Sequence[Member], excuse: str) -> Gathering:
        group = self._scheduled_group(round, members)
        self._round, self._meeting_key = round, _meeting_key(round, group)  # both at once: `rpc_coming` reads them
        if len(group) == 1:
            raise _NoRound("alone", "no other member in the swarm" if len(members) == 1 else "scheduled alone")
        gathering = await self._attend(round, group, excuse)
        if excuse:
            raise _NoRound("failed", f"nothing was sent: {excuse}")
        if self.own.peer_id not in gathering.present:
            raise _NoRound("alone", "came after its group had begun")
        if gathering.absent and len(gathering.present) < self.gossip.min_group_size:
            names = {member.peer_id: member.name for member in members}
            why = "; ".join(f"{names.get(peer_id, peer_id)} {why}" for peer_id, why in gathering.absent.items())
            raise _NoRound("alone", f"no group of {self.gossip.min_group_size}: {why}")
        return gathering

    def _scheduled_group(self, round: int, members: Sequence[Member]) -> list[str]:
        """Peer ids of this round's group, in the order in which they serve as its host."""
        position = [member.peer_id for member in members].index(self.own.peer_id)
        if round >= FINAL_ROUND:
            chosen: Sequence[int] = range(len(members))
        else:
            chosen = group_of(
                position,
                self.gossip.schedule,
                round=round,
                num_members=len(members),
                group_size=self.gossip.group_size,
                seed=self.seed,
            )
        group = [members[i].peer_id for i in sorted(chosen)]
        turn = round % len(group)  # so that no peer hosts every meeting
        return group[turn:] + group[:turn]

    async def _attend(self, round: int, group: Sequence[str], excuse: str) -> Gathering:
        """Meet at the first host in the group's order that answers."""
        request = averaging_pb2.JoinRequest(
            schema_hash=self.schema_hash,
            group_key=self._meeting_key,
            gather=msgpack.packb([round, list(group), excuse]),
        )
        for host in group:
            if host == self.own.peer_id:
                return await self._open_meeting(round, group).attend(host, excuse)
            try:
                if await self._ask_whether_coming(host, round, self._meeting_key) == _UNREACHABLE:
                    continue
                stub = self.get_stub(self._p2p, PeerID.from_base58(host), namespace=self.prefix)
                wait_s = self._wait_s(round) + _ANSWER_S + len(group) * PROBE_S
                answer = await stub.rpc_meet(request, timeout=wait_s)
            except asyncio.TimeoutError:
                raise _NoRound("failed", "the host of the meeting did not answer in time") from None
            except (P2PDaemonError, P2PHandlerError, ConnectionError):
                continue
            if answer.code == averaging_pb2.BAD_SCHEMA_HASH:
                raise _NoRound("failed", "groupmates average tensors of another size: not the same model")
            present, absent = msgpack.unpackb(answer.gathered[0])
            return Gathering(answer.group_id, tuple(present), absent)
        raise _NoRound("failed", "no groupmate could be reached")

    def _wait_s(self, round: int) -> float:
        return self.final_s if round >= FINAL_ROUND else self.gossip.matchmaking_s

    def _open_meeting(self, round: int, group: Sequence[str]) -> Meeting:
        """The meeting for this key, opened by whoever comes first; ended ones stay a while for latecomers."""
        key = _meeting_key(round, group)
        if key not in self._meetings:
            wait_s = self._wait_s(round)
            for old_key in [k for k, m in self._meetings.items() if m.age_s > 2 * m.wait_s + 60.0]:
                del self._meetings[old_key]

            async def probe(peer_id: str) -> str | None:
                return await self._ask_whether_coming(peer_id, round, key)

            self._meetings[key] = Meeting(frozenset(group), probe, wait_s)
        return self._meetings[key]

    async def rpc_meet(
        self, request: averaging_pb2.JoinRequest, context: P2PContext
    ) -> averaging_pb2.MessageFromLeader:
        """A groupmate comes to a meeting that this peer hosts; the answer says who averages together."""
        if request.schema_hash != self.schema_hash:
            return averaging_pb2.MessageFromLeader(code=averaging_pb2.BAD_SCHEMA_HASH)
        round, group, excuse = msgpack.unpackb(request.gather)
        gathering = await self._open_meeting(round, group).attend(context.remote_id.to_base58(), excuse)
        return averaging_pb2.MessageFromLeader(
            code=averaging_pb2.BEGIN_ALLREDUCE,
            group_id=gathering.group_id,
            gathered=[msgpack.packb([list(gathering.present), gathering.absent])],
        )

    async def rpc_coming(
        self, request: averaging_pb2.JoinRequest, context: P2PContext
    ) -> averaging_pb2.MessageFromLeader:
        """Is this peer still coming to the meeting `group_key`? NO_CODE: yes; otherwise `group_id` says why not."""
        round = msgpack.unpackb(request.gather)
        reason = ""
        if self.own.left:
            reason = "has left"
        elif self._round > round:
            reason = "is already in a later round"
        elif self._round == round and self._meeting_key != request.group_key:
            reason = "sees other members this round"
        return averaging_pb2.MessageFromLeader(code=averaging_pb2.NO_CODE, group_id=reason.encode())

    async def _ask_whether_coming(self, peer_id: str, round: int, key: str) -> str | None:
        if peer_id == self.own.peer_id:
            return None  # its own local steps are late, but this process knows that they go on
        request = averaging_pb2.JoinRequest(group_key=key, gather=msgpack.packb(round))
        stub = self.get_stub(self._p2p, PeerID.from_base58(peer_id), namespace=self.prefix)
        try:
            answer = await stub.rpc_coming(request, timeout=_ANSWER_S)
        except (P2PDaemonError, P2PHandlerError, ConnectionError, asyncio.TimeoutError):
            return _UNREACHABLE
        return answer.group_id.decode() or None

    # ---- the all-reduce -------------------------------------------------------------------------------------------

    def _prepare(self, gathering: Gathering, weight: float) -> StrictAllReduce:
        peer_ids = tuple(PeerID.from_base58(peer_id) for peer_id in gathering.present)
        return StrictAllReduce(
            traffic=self._traffic,
            p2p=self._p2p,
            servicer_type=type(self),
            prefix=self.prefix,
            tensors=self._averaged_tensors,
            group_id=gathering.group_id,
            ordered_peer_ids=peer_ids,
            peer_fractions=(1.0 / len(peer_ids),) * len(peer_ids),
            tensor_infos=self.tensor_infos,
            weight=weight,
            compression=self.allreduce_kwargs["compression"],
            part_size_bytes=min(DEFAULT_PART_SIZE_BYTES, -(-4 * self.total_size // len(peer_ids))),
        )

    async def _allreduce(
        self, allreduce: StrictAllReduce, alpha: float, names: dict[str, Member], before: np.ndarray[Any, Any]
    ) -> tuple[float, np.ndarray[Any, Any]]:
        """Run it within the learned deadline. Writes `delta`; returns how far it moves the peer and the new sketch."""
        deadline_s = self._deadline_s()
        info = GroupInfo(allreduce.group_id, allreduce.ordered_peer_ids, ())
        try:
            with self._register_allreduce_group(info):
                self._running_groups[allreduce.group_id].set_result(allreduce)
                difference = await asyncio.wait_for(allreduce.reduce(), timeout=deadline_s)
        except asyncio.TimeoutError:
            raise _NoRound("failed", f"the all-reduce took longer than {deadline_s:.1f} s") from None
        if allreduce.received_share < 1.0:
            causes = "; ".join(
                f"{names[peer_id.to_base58()].name} {why}" for peer_id, why in allreduce.failures.items()
            )
            raise _NoRound(
                "partial" if allreduce.received_share > 0 else "failed",
                f"{allreduce.received_share:.0%} of the mean arrived: {causes or 'parts are missing'}",
            )
        change = (difference * alpha).numpy()
        if not np.isfinite(change).all():
            raise _NoRound("failed", "the group's mean is not finite")
        self.delta.numpy()[:] = change
        return float(np.linalg.norm(change)), before + self._sketch(change)

    def _deadline_s(self) -> float:
        """Until enough rounds were seen, the configured cap; then a multiple of the slowest recent one."""
        if len(self._recent_allreduce_s) < 3:
            return self.gossip.allreduce_s
        return min(self.gossip.allreduce_s, max(_MIN_DEADLINE_S, _SLACK * max(self._recent_allreduce_s)))


_UNREACHABLE = "could not be reached"


def _meeting_key(round: int, group: Sequence[str]) -> str:
    return f"{round}:{'.'.join(sorted(group))}"
