"""Scheduled rounds on top of hivemind's `DecentralizedAverager`.

Everything about a round except copying parameters happens here, in a thread of the sidecar: reading the members,
meeting the group, the all-reduce, the sketches. The training process sends one message when a round begins and finds
the result in a future, so that local steps feel nothing of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any, AsyncIterator  # noqa: UP035 - hivemind knows an RPC's stream by this one only

import torch
from hivemind import DHT, DecentralizedAverager
from hivemind.p2p import P2PContext, PeerID
from hivemind.proto import averaging_pb2

from ray_gossip.causes import BUSY
from ray_gossip.config import GossipConfig
from ray_gossip.errors import SwarmError, one_line
from ray_gossip.gossip.charter import Charter
from ray_gossip.gossip.consensus import ConsensusControl
from ray_gossip.gossip.guests import GuestBook, pack_all, unpack_all
from ray_gossip.gossip.handover import Handover
from ray_gossip.gossip.members import Member, Neighbours, View, donors
from ray_gossip.gossip.memory import Memory
from ray_gossip.gossip.protocols import StateShape
from ray_gossip.gossip.round import RoundResult, Stage
from ray_gossip.gossip.signals import Signals
from ray_gossip.hive.doors import refusals
from ray_gossip.hive.download import fetch, send
from ray_gossip.hive.group_mean import GroupMean
from ray_gossip.hive.health import first_silent
from ray_gossip.hive.matchmaking import WINDOW_S, match
from ray_gossip.hive.membership import Membership
from ray_gossip.hive.mixer import Mixer
from ray_gossip.hive.rendezvous import ANSWER_S, GONE, Rendezvous
from ray_gossip.hive.repairs import EndsItsRounds
from ray_gossip.hive.reunion import dial
from ray_gossip.hive.rounds import Rounds
from ray_gossip.records import Record

SILENT_S = 15.0  # a DHT process or daemon that has not answered for so long is hung; others see it expire by then
_TICK_S = 0.5  # the averager gives a sign of life this often
_LONGEST_MEETING_S = 600.0  # mostly it is the first member's interval that ends a meeting
_SHUTDOWN_S = 1.0  # grace; a killed averager leaves nothing behind


class GossipAverager(EndsItsRounds, DecentralizedAverager):
    """hivemind's averager with scheduled groups and honest outcomes.

    Args:
        memory: shared with the training process.
        shape: what is averaged.
        hand_over: asks the training process for this peer's model, for a newcomer.
        reply: takes the number of a call, its result or its error. In any thread; may block.
        give_up: ends this process, for a new one to begin; takes the sentence that says why, and a trace or nothing.
        own: how this peer declares itself.
        final_s: how long the meeting of a final round waits.
    """

    _rpc_handlers = None  # hivemind caches these on the class; do not inherit the parent's
    _stub_type = None

    def __init__(
        self,
        memory: Memory,
        dht: DHT,
        *,
        shape: StateShape,
        hand_over: Callable[[], Future[Handover]],
        reply: Callable[[int, Any, Exception | None], None],
        give_up: Callable[[str, str], None],
        charter: Charter,
        own: Member,
        gossip: GossipConfig,
        final_s: float,
        seed: int,
    ) -> None:
        self.gossip, self.final_s = gossip, final_s
        self.signals, self._reply, self._give_up = Signals(memory.signals), reply, give_up
        control = ConsensusControl(gossip.consensus_target) if gossip.consensus_target is not None else None
        self._membership = Membership(dht, charter=charter, own=own, control=control)
        self._charter, self._guests = charter, GuestBook(charter.num_peers)
        self._untold: list[bytes] = []
        self._telling, self._answering = asyncio.Lock(), asyncio.Lock()
        # Commands that are being carried out. A loop knows its tasks by weak references, and hivemind its futures, so a
        # task that waits for one is garbage to Python: its commands were lost now and then.
        self._at_work: set[Future[None]] = set()
        self._mixer = Mixer(gossip, num_parameters=shape.num_parameters)
        self._shape, self._hand_over = shape, hand_over
        window_s = gossip.matchmaking_s or WINDOW_S
        super().__init__(
            [torch.empty(shape.size)],  # which it would copy into shared memory of its own
            dht,
            prefix=charter.run_id,
            start=False,
            target_group_size=gossip.group_size,
            min_group_size=gossip.min_group_size,
            allow_state_sharing=False,  # until it has a state that others may start from: see GossipEngine
            request_timeout=min(3.0, window_s / 2),
            min_matchmaking_time=window_s,
            shutdown_timeout=_SHUTDOWN_S,
        )
        self._averaged_tensors = (memory.snapshot,)
        self._kept, self._kept_in = memory.kept, 0
        self._ready: Future[None] = Future()  # hivemind's own is for another process to wait for
        self._rendezvous = Rendezvous(
            peer_id=own.peer_id,
            schema_hash=self.schema_hash + shape.layout.encode(),
            cap_s=self._cap_s,
            stub=self._stub,
            others=lambda: [member.peer_id for member in self._membership.view.present],
            on_call=self._on_call,
            furthest=lambda: self._membership.furthest,
        )
        self._rounds = Rounds(
            gossip,
            snapshot=memory.snapshot,
            delta=memory.delta,
            num_parameters=shape.num_parameters,
            seed=seed,
            signals=self.signals,
            membership=self._membership,
            rendezvous=self._rendezvous,
            mixer=self._mixer,
            group_mean=GroupMean(self, mixer=self._mixer, find_gone=self._rendezvous.find_gone, gossip=gossip),
            match=partial(match, self, mixer=self._mixer, rendezvous=self._rendezvous, window_s=window_s),
        )

    # ---- called from another thread -------------------------------------------------------------------------------

    def serve(self, within_s: float) -> None:
        """Run in a thread of this process, not in one that hivemind forks."""
        self._thread = threading.Thread(target=self._run_internal, name="averager", daemon=True)
        self._thread.start()
        self.wait_until_ready(within_s)
        self._begun = threading.Event()
        self._outer_pipe.send(("_begin", [], {}))
        self._begun.wait(within_s)

    def call(self, number: int, method: str, arguments: dict[str, Any]) -> None:
        """Have a command carried out; its result goes to `answer`."""
        answering = asyncio.run_coroutine_threadsafe(self._answer(number, method, arguments), self._loop)
        self._at_work.add(answering)
        answering.add_done_callback(self._at_work.discard)

    def stop(self) -> None:
        """End its rounds, and stop answering others."""
        self._outer_pipe.send(("_shutdown", [_SHUTDOWN_S], {}))
        self._thread.join(_SHUTDOWN_S)

    # ---- in its own thread ----------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ticking = asyncio.create_task(self._tick())
        self._hearing = asyncio.create_task(self._hear())
        self._begun.set()

    async def _answer(self, number: int, method: str, arguments: dict[str, Any]) -> None:
        value, error = None, None
        try:
            value = await getattr(self, method)(**arguments)
        except SwarmError as answer:
            error = answer
        except Exception as unforeseen:  # a daemon that has just died, or a bug: a new process knows nothing of it
            why = f"{type(unforeseen).__name__}: {unforeseen}".rstrip(": ")
            self._give_up(f"the network process of this peer failed: {one_line(why)}", traceback.format_exc())
        async with self._answering:  # in a thread: the other side may be slow to read
            await asyncio.get_running_loop().run_in_executor(None, self._reply, number, value, error)

    async def _share_state(self) -> None:
        self.allow_state_sharing = True

    async def _gossip_round(self, round: int, **arguments: Any) -> RoundResult:
        result = await self._rounds.run(round, **arguments)
        if result.outcome == "averaged":
            self._kept_in = 1 - self._kept_in
            self._mixer.keep(self._kept[self._kept_in])
        return replace(result, kept_in=self._kept_in)

    async def _join(self, from_round: int, is_founder: bool, began_as: str, goes_on: bool) -> View:
        self._start(is_founder=is_founder, kept_in=self._kept_in if goes_on else None)
        return await self._membership.join(from_round, began_as=began_as)

    async def _join_again(self, called: int, began_as: str, kept_in: int, before: tuple[Member, ...]) -> int:
        self._start(is_founder=False, kept_in=kept_in)
        return await self._membership.join_again(called=called, began_as=began_as, before=before)

    async def _start_anew(self) -> None:
        self._start(is_founder=True)

    def _start(self, *, is_founder: bool, kept_in: int | None = None) -> None:
        self._mixer.start(self._averaged_tensors[0], is_founder=is_founder and kept_in is None)
        if kept_in is not None:
            self._kept_in = kept_in
            self._mixer.restore(self._kept[kept_in])
        self._mixer.keep(self._kept[self._kept_in])

    async def _tick(self) -> None:
        while True:
            self.signals.tick()
            await asyncio.sleep(_TICK_S)

    async def _hear(self) -> None:
        silent = await first_silent(self.dht, self._p2p, silent_s=SILENT_S)
        self._give_up(f"the {silent} of this peer has been hung for {SILENT_S:g} s", "")

    async def _read_members(self) -> View:
        return await self._membership.read()

    async def _tell_members(self, note: bytes) -> View:
        return await self._membership.tell(note)

    async def rpc_download_state(
        self, request: averaging_pb2.DownloadRequest, context: P2PContext
    ) -> AsyncIterator[averaging_pb2.DownloadData]:
        """A newcomer asks for this peer's model."""
        if self.allow_state_sharing:
            handover = replace(await asyncio.wrap_future(self._hand_over()), layout=self._shape.layout)
            async for message in send(handover):
                yield message

    async def _download(self, donor: str) -> Handover | str:
        """The model of a donor, or of any; else why there is none."""
        asked = [donor] if donor else donors(await self._membership.read(), self._membership.own.peer_id)
        return await fetch(asked, stub=self._stub, size=self._shape.size, layout=self._shape.layout)

    async def _neighbours(self, known: tuple[str, ...]) -> Neighbours:
        """The other members, and where the daemon is connected to them; if to none, it dials the multiaddrs known."""
        others = [member for member in self._membership.view.present if member.peer_id != self._membership.own.peer_id]
        ids = {member.peer_id for member in others}
        connected = [(each.peer_id.to_base58(), each.addrs) for each in await self._p2p.list_peers()]
        found = [f"{address}/p2p/{peer_id}" for peer_id, all_ in connected if peer_id in ids for address in all_]
        if not found and (there := await dial(self._p2p, known)):
            await self._membership.reunite(there)
        return Neighbours(tuple(found), tuple(others), refusals())

    async def _leave(self) -> None:
        await self._membership.leave()

    async def _take_guest_records(self) -> list[Record]:
        return self._guests.take(self._membership.view)

    async def _tell_driver(self, record: bytes) -> None:
        self._untold.append(record)
        async with self._telling:  # in order; a record that waited here may find that its record has gone with another
            told, self._untold = self._untold, []
            request = averaging_pb2.JoinRequest(gather=pack_all(told))
            for host in self._membership.view.present:
                if told and host.peer_index < self._charter.num_peers:
                    with contextlib.suppress(*GONE, asyncio.TimeoutError):
                        await self._stub(host.peer_id).rpc_tell(request, timeout=ANSWER_S)
                        return

    def _stub(self, peer_id: str) -> Any:
        return self.get_stub(self._p2p, PeerID.from_base58(peer_id), namespace=self.prefix)

    def _cap_s(self, stage: Stage) -> float:
        return self.final_s if stage.is_final else self.gossip.matchmaking_s or _LONGEST_MEETING_S

    def _on_call(self, stage: Stage) -> str:
        """A groupmate has begun this round; says why this peer cannot come soon, if it cannot."""
        if stage.is_final or stage.round == self._rendezvous.round:
            return ""
        self.signals.call(stage.round)
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
        return self._rendezvous.answer_coming(
            request, context.remote_id.to_base58(), has_left=self._membership.own.left
        )

    async def rpc_tell(
        self, request: averaging_pb2.JoinRequest, context: P2PContext
    ) -> averaging_pb2.MessageFromLeader:
        """A guest has something for the driver."""
        self._guests.write(context.remote_id.to_base58(), unpack_all(request.gather))
        return averaging_pb2.MessageFromLeader(code=averaging_pb2.NO_CODE)
