"""The averager process: scheduled rounds on top of hivemind's `DecentralizedAverager`.

Everything about a round except copying parameters happens here, in the process that hivemind forks for averaging:
reading the members, meeting the group, the all-reduce, the sketches. The training process sends one message when a
round begins and finds the result in a future, so that local steps feel nothing of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import Callable
from typing import Any, AsyncIterator  # noqa: UP035 - hivemind knows an RPC's stream by this one only

import msgpack
import torch
from hivemind import DHT, DecentralizedAverager
from hivemind.averaging.control import StepControl
from hivemind.p2p import P2PContext, PeerID
from hivemind.proto import averaging_pb2
from hivemind.utils import MPFuture, get_dht_time

from ray_gossip.causes import BUSY, NOBODY_FOUND
from ray_gossip.config import GossipConfig
from ray_gossip.errors import RayGossipError
from ray_gossip.gossip.charter import Charter
from ray_gossip.gossip.consensus import ConsensusControl
from ray_gossip.gossip.guests import GuestBook, unpack
from ray_gossip.gossip.handover import Handover, StandsStill
from ray_gossip.gossip.meeting import Gathering
from ray_gossip.gossip.members import Member, View, donors
from ray_gossip.gossip.protocols import StateShape
from ray_gossip.gossip.round import FINAL_ROUND, NoRound, RoundResult
from ray_gossip.gossip.signals import Signals
from ray_gossip.hive.calls import Calls
from ray_gossip.hive.commands import Commands
from ray_gossip.hive.download import receive, send
from ray_gossip.hive.group_mean import GroupMean
from ray_gossip.hive.membership import Membership
from ray_gossip.hive.mixer import Mixer
from ray_gossip.hive.process import AlwaysForked, in_background
from ray_gossip.hive.rendezvous import ANSWER_S, GONE, Rendezvous, Stage
from ray_gossip.hive.repairs import EndsItsRounds
from ray_gossip.hive.rounds import Rounds
from ray_gossip.records import Record

_TICK_S = 0.5  # the averager gives a sign of life this often
_WINDOW_S = 5.0  # of hivemind's own matchmaking
_LONGEST_MEETING_S = 600.0  # mostly it is the first member's interval that ends a meeting
_CURRENT = 3  # donors that are asked for a current model before one that stands still will do
_SHUTDOWN_S = 1.0  # grace; a killed averager leaves nothing behind


class GossipAverager(Commands, AlwaysForked, EndsItsRounds, DecentralizedAverager):
    """hivemind's averager with scheduled groups and honest outcomes.

    Args:
        state: flat float32 [size] in host memory, moved to shared memory: the snapshot.
        shape: what is averaged.
        hand_over: called in this process, in a thread of hivemind's, when a newcomer asks for this peer's model.
        own: how this peer declares itself.
        final_s: how long the meeting of a final round waits.
    """

    _rpc_handlers = None  # hivemind caches these on the class; do not inherit the parent's
    _stub_type = None

    def __init__(
        self,
        state: torch.Tensor,
        dht: DHT,
        *,
        shape: StateShape,
        hand_over: Callable[[], Handover],
        charter: Charter,
        own: Member,
        gossip: GossipConfig,
        final_s: float,
        seed: int,
    ) -> None:
        self.gossip, self.final_s = gossip, final_s
        self.delta = torch.zeros_like(state).share_memory_()
        self.signals = Signals()
        control = ConsensusControl(gossip.consensus_target) if gossip.consensus_target is not None else None
        self._membership = Membership(dht, charter=charter, own=own, control=control)
        self._guests = GuestBook(charter.num_peers)
        self._charter = charter
        self._untold: list[bytes] = []
        self._pieces = b""  # of a record that is on its way from the training process
        self._telling, self._answering = asyncio.Lock(), asyncio.Lock()
        self._calls = Calls()
        self._mixer = Mixer(gossip, num_parameters=shape.num_parameters)
        self._shape, self._hand_over = shape, hand_over
        super().__init__(
            [state],
            dht,
            prefix=charter.run_id,
            start=False,
            target_group_size=gossip.group_size,
            min_group_size=gossip.min_group_size,
            allow_state_sharing=False,  # until it has a state that others may start from: see GossipEngine
            request_timeout=min(3.0, self._window_s / 2),
            min_matchmaking_time=self._window_s,
            shutdown_timeout=_SHUTDOWN_S,
        )
        self._rendezvous = Rendezvous(
            peer_id=own.peer_id,
            schema_hash=self.schema_hash + shape.layout.encode(),
            cap_s=self._cap_s,
            stub=self._stub,
            others=lambda: [member.peer_id for member in self._membership.view.present],
            on_call=self._on_call,
        )
        self._rounds = Rounds(
            gossip,
            snapshot=self._averaged_tensors[0],
            delta=self.delta,
            num_parameters=shape.num_parameters,
            seed=seed,
            signals=self.signals,
            membership=self._membership,
            rendezvous=self._rendezvous,
            mixer=self._mixer,
            group_mean=GroupMean(
                self, mixer=self._mixer, find_gone=self._rendezvous.find_gone, cap_s=gossip.allreduce_s
            ),
            match=self._match,
        )

    # ---- in the training process ----------------------------------------------------------------------------------

    def run_in_background(self, await_ready: bool = True, timeout: float | None = None) -> None:
        """As hivemind's; the averager process gets out of the way of the training process."""
        with in_background():
            super().run_in_background(await_ready=False)
        self._calls.listen()
        if await_ready:
            self.wait_until_ready(timeout)

    def get_current_state(self) -> tuple[list[Any], tuple[torch.Tensor, ...], None]:
        """What a newcomer downloads; runs in the training process."""
        handover = self._hand_over()
        return (
            [handover.local_step, handover.is_current, *handover.rest],
            (handover.state, *handover.rest.values()),
            None,
        )

    # ---- in the averager process ----------------------------------------------------------------------------------

    async def _answer(self, method: str, number: int, **arguments: Any) -> None:
        value: Any = None
        error: RayGossipError | str | None = None  # it surfaces where the future is read
        try:
            value = await getattr(self, method)(**arguments)
        except RayGossipError as told:
            error = told
        except Exception:
            error = traceback.format_exc()
        async with self._answering:  # in a thread: the pipe may be full
            await asyncio.get_running_loop().run_in_executor(None, self._calls.answer, number, value, error)

    async def _gossip_round(self, round: int, **arguments: Any) -> RoundResult:
        return await self._rounds.run(round, **arguments)

    @property
    def _own(self) -> Member:
        return self._membership.own

    async def _join(self, from_round: int, is_founder: bool, began_as: str) -> View:
        self._mixer.start(self._averaged_tensors[0], is_founder=is_founder)
        self._ticking = asyncio.create_task(self._tick())
        return await self._membership.join(from_round, began_as=began_as)

    async def _start_anew(self) -> None:
        self._mixer.start(self._averaged_tensors[0], is_founder=True)

    async def _tick(self) -> None:
        while True:
            self.signals.tick()
            await asyncio.sleep(_TICK_S)

    async def _read_members(self) -> View:
        return await self._membership.read()

    async def rpc_download_state(
        self, request: averaging_pb2.DownloadRequest, context: P2PContext
    ) -> AsyncIterator[averaging_pb2.DownloadData]:
        """A newcomer asks for this peer's model."""
        if self.allow_state_sharing:
            metadata, (state, *rest), _ = await self._get_current_state_from_host_process()
            local_step, is_current, *names = self.serializer.loads(metadata)
            handover = Handover(
                local_step=local_step,
                state=state,
                rest=dict(zip(names, rest, strict=True)),
                layout=self._shape.layout,
                is_current=is_current,
            )
            async for message in send(handover):
                yield message

    async def _download(self, donor: str) -> Handover | str:
        why = "nobody is there"
        asked = [donor] if donor else donors(self._membership.view, self._own.peer_id)
        tries = [(peer_id, False) for peer_id in asked[:_CURRENT]] if len(asked) > 1 else []
        for peer_id, takes_old in [*tries, *((peer_id, True) for peer_id in asked)]:
            try:
                stream = await self._stub(peer_id).rpc_download_state(averaging_pb2.DownloadRequest())
                handover = await receive(stream, size=self._shape.size, layout=self._shape.layout, takes_old=takes_old)
            except (*GONE, asyncio.TimeoutError, EOFError, StandsStill) as error:
                why = str(error) or type(error).__name__
                continue
            if handover is not None:
                return handover
            why = "it shares none yet"
        return why

    async def _leave(self) -> None:
        await self._membership.leave()

    async def _take_guest_records(self) -> list[Record]:
        return self._guests.take(self._membership.view)

    async def _take_piece(self, piece: bytes) -> None:
        self._pieces += piece

    async def _tell_driver(self, last_piece: bytes) -> None:
        self._untold.append(self._pieces + last_piece)
        self._pieces = b""
        async with self._telling:  # in order; whoever waited here may find that its record has gone with another
            told, self._untold = self._untold, []
            request = averaging_pb2.JoinRequest(gather=msgpack.packb(told))
            for host in self._membership.view.present:
                if told and host.peer_index < self._charter.num_peers:
                    with contextlib.suppress(*GONE, asyncio.TimeoutError):
                        await self._stub(host.peer_id).rpc_tell(request, timeout=ANSWER_S)
                        return

    def _stub(self, peer_id: str) -> Any:
        return self.get_stub(self._p2p, PeerID.from_base58(peer_id), namespace=self.prefix)

    async def _match(self, stage: Stage, excuse: str) -> Gathering:
        """hivemind's own matchmaking: whoever looks for a group at the same time, under the same key."""
        if excuse:
            raise NoRound("failed", f"nothing was sent: {excuse}")
        deadline = get_dht_time() + 2 * self._window_s
        step = StepControl(
            scheduled_time=get_dht_time() + self._window_s,
            deadline=deadline,
            allow_retries=False,
            weight=1.0,
            data_for_gather=msgpack.packb(self._mixer.anchor_id),
        )
        step.attach(MPFuture(), MPFuture())
        step.allow_allreduce()
        self._rendezvous.go_to(stage, ())
        found = await self._matchmaking.look_for_group(step)
        if found is None:
            raise NoRound("alone", f"{NOBODY_FOUND} within {2 * self._window_s:g} s")
        present = tuple(peer_id.to_base58() for peer_id in found.peer_ids)
        anchors = frozenset(map(msgpack.unpackb, found.gathered))
        return Gathering(found.group_id, present, {}, anchors)

    @property
    def _window_s(self) -> float:
        """How long hivemind's own matchmaking looks for a group."""
        return self.gossip.matchmaking_s or _WINDOW_S

    def _cap_s(self, stage: Stage) -> float:
        return self.final_s if stage[0] >= FINAL_ROUND else self.gossip.matchmaking_s or _LONGEST_MEETING_S

    def _on_call(self, stage: Stage) -> str:
        """A groupmate has begun this round; says why this peer cannot come soon, if it cannot."""
        round = stage[0]
        if round >= FINAL_ROUND or round == self._rendezvous.round:
            return ""
        self.signals.call(round)
        busy_s = self.signals.busy_s if self.gossip.overlap else 0.0
        return f"{BUSY}: no local step for {busy_s:.0f} s" if busy_s else ""

    async def rpc_meet(
        self, request: averaging_pb2.JoinRequest, context: P2PContext
    ) -> averaging_pb2.MessageFromLeader:
        """A groupmate comes to a meeting that this peer hosts."""
        return await self._rendezvous.answer_meet(request, context.remote_id.to_base58())

    async def rpc_coming(
        self, request: averaging_pb2.JoinRequest, context: P2PContext
    ) -> averaging_pb2.MessageFromLeader:
        """A host asks whether this peer is still coming."""
        return self._rendezvous.answer_coming(request, context.remote_id.to_base58(), has_left=self._own.left)

    async def rpc_tell(
        self, request: averaging_pb2.JoinRequest, context: P2PContext
    ) -> averaging_pb2.MessageFromLeader:
        """A guest has something for the driver."""
        records = [unpack(wire) for wire in msgpack.unpackb(request.gather)]
        self._guests.write(context.remote_id.to_base58(), records)
        return averaging_pb2.MessageFromLeader(code=averaging_pb2.NO_CODE)
