"""The averager process: scheduled rounds on top of hivemind's `DecentralizedAverager`.

Everything about a round except copying parameters happens here, in the process that hivemind forks for averaging:
reading the members, meeting the group, the all-reduce, the sketches. The training process sends one message when a
round begins and finds the result in a future, so that local steps feel nothing of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, AsyncIterator, NamedTuple  # noqa: UP035 - hivemind knows an RPC's stream by this one only

import msgpack
import numpy as np
import torch
from hivemind import DHT, DecentralizedAverager
from hivemind.averaging.control import StepControl
from hivemind.averaging.group_info import GroupInfo
from hivemind.averaging.partition import DEFAULT_PART_SIZE_BYTES
from hivemind.compression import CompressionBase, CompressionInfo
from hivemind.p2p import P2PContext, PeerID
from hivemind.proto import averaging_pb2
from hivemind.utils import MPFuture, get_dht_time
from numpy.typing import NDArray

from ray_gossip.causes import (
    BUSY,
    CUT_OFF,
    EXPIRED,
    GAVE_UP,
    HAD_ENDED,
    INCOMPLETE,
    LOST,
    NO_OTHERS,
    NOBODY_FOUND,
    NOT_FINITE,
    SCHEDULED_ALONE,
    TOOK_LONGER,
)
from ray_gossip.config import GossipConfig
from ray_gossip.errors import SwarmError
from ray_gossip.gossip.charter import Charter
from ray_gossip.gossip.consensus import ConsensusControl, summary
from ray_gossip.gossip.deadline import Deadline
from ray_gossip.gossip.guests import GuestBook, pack, unpack
from ray_gossip.gossip.handover import Handover, StandsStill
from ray_gossip.gossip.meeting import Arrival, Gathering
from ray_gossip.gossip.members import Member, View, donors, takers
from ray_gossip.gossip.protocols import StateShape
from ray_gossip.gossip.round import FINAL_ROUND, Behind, NoRound, RoundResult, RoundSoFar
from ray_gossip.gossip.signals import Signals
from ray_gossip.hive.allreduce import StrictAllReduce, Traffic
from ray_gossip.hive.calls import AVERAGER_DIED, Calls
from ray_gossip.hive.download import receive, send
from ray_gossip.hive.membership import Membership
from ray_gossip.hive.mixer import Mixer
from ray_gossip.hive.process import AlwaysForked, in_background
from ray_gossip.hive.rendezvous import ANSWER_S, GONE, NoMeeting, Rendezvous, Stage, causes_of, settle
from ray_gossip.hive.repairs import EndsItsRounds
from ray_gossip.mixing import Sketch
from ray_gossip.records import Outcome, Record
from ray_gossip.schedule import group_of, radices

_PIECE_BYTES = 8192  # hivemind's pipe between two processes takes no message above 16 KB
_TICK_S = 0.5  # the averager gives a sign of life this often
_MOVES = 3  # a peer that finds its round over moves on to a later one at most so often
_WINDOW_S = 5.0  # of hivemind's own matchmaking
_LONGEST_MEETING_S = 600.0  # mostly it is the first member's interval that ends a meeting
_CURRENT = 3  # donors that are asked for a current model before one that stands still will do
_SHUTDOWN_S = 1.0  # grace; a killed averager leaves nothing behind


class Change(NamedTuple):
    """What a round adds to the parameters."""

    values: NDArray[np.float32]  # [size]
    sketch: NDArray[np.float64]


class GossipAverager(AlwaysForked, EndsItsRounds, DecentralizedAverager):
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
        self.gossip, self.final_s, self.seed = gossip, final_s, seed
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
        self._sketch = self._parameter_sketch = Sketch(state.numel())
        if shape.num_parameters < state.numel() and control is not None:
            self._parameter_sketch = Sketch(shape.num_parameters)
        self._traffic = Traffic()
        self._deadline = Deadline(gossip.allreduce_s)
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

    # ---- called from the training process -------------------------------------------------------------------------

    def run_in_background(self, await_ready: bool = True, timeout: float | None = None) -> None:
        """As hivemind's; the averager process gets out of the way of the training process."""
        with in_background():
            super().run_in_background(await_ready=False)
        self._calls.listen()
        if await_ready:
            self.wait_until_ready(timeout)

    def declare(self, from_round: int, *, is_founder: bool, began_as: str = "") -> Future[View]:
        """Declare this peer, from now on and every few seconds, for as long as this process lives.

        The snapshot must hold the parameters with which the peer starts.
        """
        return self._call("_join", from_round=from_round, is_founder=is_founder, began_as=began_as)

    def start_anew(self) -> Future[None]:
        """The snapshot has become another one since this peer declared itself: the swarm starts from it."""
        return self._call("_start_anew")

    def read_members(self) -> Future[View]:
        """Who is in the swarm now, as far as this peer can see."""
        return self._call("_read_members")

    def gossip_round(
        self, round: int, *, local_step: int, weight: float = 1.0, wait_s: float, interval_s: float = 0.0
    ) -> Future[RoundResult]:
        """Run one round on the snapshot; when it resolves to `averaged`, `delta` holds what to add.

        Args:
            wait_s: how long to wait for groupmates that are late.
            interval_s: until this peer's next round is due. If the round is over already, it waits that long for the
                next one of the swarm before it calls others to it.
        """
        return self._call(
            "_gossip_round", round=round, local_step=local_step, weight=weight, wait_s=wait_s, interval_s=interval_s
        )

    def tell_driver(self, record: Record) -> Future[None]:
        """A guest's record, by way of one of the driver's own peers; it is lost when none of them can be reached."""
        wire = pack(record)
        pieces = [wire[start : start + _PIECE_BYTES] for start in range(0, len(wire), _PIECE_BYTES)]
        for piece in pieces[:-1]:
            self._call("_take_piece", piece=piece)
        return self._call("_tell_driver", last_piece=pieces[-1])

    def take_guest_records(self) -> Future[list[Record]]:
        """What guests have told this peer for the driver."""
        return self._call("_take_guest_records")

    def leave(self) -> Future[None]:
        """Announce that this peer is going: others leave it out from the next round on."""
        return self._call("_leave")

    def get_current_state(self) -> tuple[list[Any], tuple[torch.Tensor, ...], None]:
        """What a newcomer downloads; runs in the training process."""
        handover = self._hand_over()
        return (
            [handover.local_step, handover.is_current, *handover.rest],
            (handover.state, *handover.rest.values()),
            None,
        )

    def download(self, *, donor: str = "") -> Future[Handover | str]:
        """The model of a peer that shares it: of this one, or of any; if there is none, why."""
        return self._call("_download", donor=donor)

    def _call(self, method: str, **arguments: Any) -> Future[Any]:
        number, future = self._calls.open()
        try:
            self._outer_pipe.send(("_answer", [method, number], arguments))
        except OSError:
            raise SwarmError(AVERAGER_DIED) from None
        return future

    # ---- in the averager process ----------------------------------------------------------------------------------

    async def _answer(self, method: str, number: int, **arguments: Any) -> None:
        value, bug = None, ""
        try:
            value = await getattr(self, method)(**arguments)
        except Exception:  # it surfaces where the future is read
            bug = traceback.format_exc()
        async with self._answering:  # in a thread: the pipe may be full
            await asyncio.get_running_loop().run_in_executor(None, self._calls.answer, number, value, bug)

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

    async def _gossip_round(
        self, round: int, local_step: int, weight: float, wait_s: float, interval_s: float
    ) -> RoundResult:
        self._traffic.begin_round()
        snapshot = self._averaged_tensors[0]
        before = self._sketch(snapshot.numpy())
        declared = b""
        if self.gossip.consensus_target is not None:  # of parameters: statistics may be of any size
            parameters = snapshot[: self._shape.num_parameters].numpy()
            declared = summary(parameters, self._parameter_sketch(parameters))
        run = RoundSoFar(self._own.peer_index, round=round, wait_s=wait_s)
        outcome: Outcome = "averaged"
        change: Change | None = None
        try:
            for moves in itertools.count():
                try:
                    view = await self._view(run, local_step, declared)
                    change = await self._change(view, snapshot, before, weight, run)
                    break
                except Behind as behind:
                    if moves == _MOVES:
                        raise NoRound("alone", str(behind)) from None
                    run.move_on(behind.round, interval_s=interval_s)
        except NoRound as ended:
            outcome = ended.outcome
            run.notes.insert(0, ended.cause)
        finally:
            self.signals.reduce(begins=False)
            self._pending_groups_registered.set()
        if not run.is_final:
            self._membership.control_consensus()
        moved, after = 0.0, before
        if change is not None:
            self.delta.numpy()[:] = change.values
            moved, after = float(np.linalg.norm(change.values)), before + change.sketch
        return RoundResult(
            round=run.round,
            outcome=outcome,
            cause="; ".join(run.notes),
            group=tuple(sorted(run.group)),
            matchmaking_s=run.matchmaking_s,
            allreduce_s=run.allreduce_s,
            bytes_sent=self._traffic.take(with_late=run.allreduce_s > 0),
            moved=moved,
            sketch_before=tuple(before.tolist()),
            sketch_after=tuple(after.tolist()),
            stretch=self._membership.stretch,
            is_early=run.is_early,
            num_members=len(view.at(run.round)),
            is_hermit=self._membership.is_hermit,
            members=takers(view.at(run.round)),
        )

    async def _view(self, run: RoundSoFar, local_step: int, summary: bytes) -> View:
        """Who counts in this round; a peer that the swarm has left behind by rounds catches up first."""
        if run.is_final:
            return self._membership.view
        view = await self._membership.at_round(run.round, local_step=local_step, summary=summary)
        if view.latest_round > run.round + 1:
            run.round = view.latest_round
            view = await self._membership.at_round(run.round, local_step=local_step, summary=summary)
        return view

    async def _change(
        self, view: View, snapshot: torch.Tensor, sketch: NDArray[np.float64], weight: float, run: RoundSoFar
    ) -> Change:
        """Run all stages of a round; returns what to add to the parameters.

        Args:
            sketch: of the snapshot. It sums up all elements, and so is finite just when each of them is.

        Raises:
            NoRound: it has ended without averaging.
            Behind: this peer came too late.
        """
        if self._membership.has_expired and not run.is_final:  # they would hear its calls all the same, and begin
            raise NoRound("alone", EXPIRED)
        members = view.at(run.round)
        names = {member.peer_id: member.name for member in members}
        is_exact = run.is_final or self._is_exact(run.round)
        excuse = "" if is_exact else self._mixer.refusal(snapshot)
        if not np.isfinite(sketch).all():
            excuse = f"its parameters are {NOT_FINITE}"
        state, total = snapshot, None
        for stage, (schedule, turn) in enumerate(self._schedules(run.round, len(members))):
            started = time.monotonic()
            self._pending_groups_registered.clear()  # parts may come before we know that our group is complete
            try:
                gathering = await self._meet((run.round, stage), members, schedule, turn, excuse, run)
            finally:
                run.matchmaking_s += time.monotonic() - started
            run.group |= {member.peer_index for member in members if member.peer_id in gathering.present}
            run.notes += causes_of(gathering.absent, names)
            started = time.monotonic()
            self.signals.reduce(begins=True)
            try:
                # of several all-reduces each but the first would need the weights of whole groups
                difference = await self._allreduce(gathering, state, 1.0 if is_exact else weight, names, exact=is_exact)
            finally:
                run.allreduce_s += time.monotonic() - started
            total = difference if total is None else total + difference
            if is_exact:
                state = snapshot + total
        assert total is not None
        values = self._mixer.change(snapshot, total, alpha=1.0 if is_exact else self.gossip.alpha, plain=is_exact)
        change = Change(values, self._sketch(values))
        if not np.isfinite(change.sketch).all():
            raise NoRound("failed", f"the group's mean is {NOT_FINITE}")
        if is_exact:
            self._mixer.set_anchor(state)
        return change

    def _is_exact(self, round: int) -> bool:
        return self.gossip.exact_every > 0 and (round + 1) % self.gossip.exact_every == 0

    def _schedules(self, round: int, num_members: int) -> list[tuple[str, int]]:
        """The schedule of each stage, and the round number that it is asked for."""
        if round >= FINAL_ROUND:
            return [("all", round)]
        if self._is_exact(round):
            sides = radices(num_members, self.gossip.group_size)
            return [("grid", turn) for turn in range(len(sides))] if sides else [("all", round)]
        return [(self.gossip.schedule, round)]

    # ---- meeting the group ----------------------------------------------------------------------------------------

    async def _meet(
        self,
        stage: Stage,
        members: Sequence[Member],
        schedule: str,
        turn: int,
        excuse: str,
        run: RoundSoFar,
    ) -> Gathering:
        if schedule == "hivemind":
            return await self._match(stage, excuse)
        group = self._scheduled_group(members, schedule, turn)
        self._rendezvous.go_to(stage, group)
        run.is_lone = len(group) == 1
        if run.is_lone:
            lone = CUT_OFF if self._membership.is_hermit else NO_OTHERS
            raise NoRound("alone", lone if len(members) == 1 else SCHEDULED_ALONE)
        arrival = Arrival(excuse=excuse, anchor=self._mixer.anchor_id, due_in_s=run.due_in_s, wait_s=run.wait_s)
        try:
            gathering = await self._rendezvous.attend(stage, group, arrival)
        except NoMeeting as error:
            raise NoRound("failed", str(error)) from None
        if excuse:
            raise NoRound("failed", f"nothing was sent: {excuse}")
        names = {member.peer_id: member.name for member in members}
        smallest = 2 if run.is_final else self.gossip.min_group_size
        settle(gathering, stage, own=self._own.peer_id, smallest=smallest, names=names)
        return gathering

    def _scheduled_group(self, members: Sequence[Member], schedule: str, turn: int) -> list[str]:
        """Peer ids of this stage's group, in the order in which they serve as its host."""
        position = [member.peer_id for member in members].index(self._own.peer_id)
        chosen = group_of(
            position,
            schedule,
            round=turn,
            num_members=len(members),
            group_size=self.gossip.group_size,
            seed=self.seed,
            nodes=[member.node for member in members],
            cross_every=self.gossip.cross_every,
        )
        group = [members[i].peer_id for i in chosen]
        first = turn % len(group)  # so that no peer hosts every meeting
        return group[first:] + group[:first]

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

    # ---- the all-reduce -------------------------------------------------------------------------------------------

    async def _allreduce(
        self,
        gathering: Gathering,
        state: torch.Tensor,
        weight: float,
        names: Mapping[str, str],
        *,
        exact: bool,
    ) -> torch.Tensor:
        """The difference between the group's mean and `state`, within the learned deadline. Raises NoRound."""
        outgoing = self._mixer.outgoing(state, exact=exact, anchors=gathering.anchors)
        allreduce = self._prepare(gathering, outgoing, weight)
        num_bytes = sum(
            int(4 * len(tensor) * codec.estimate_compression_ratio(CompressionInfo.from_tensor(tensor)))
            for tensor, codec in outgoing
        )
        deadline_s, started = self._deadline.of(num_bytes), time.monotonic()
        info = GroupInfo(allreduce.group_id, allreduce.ordered_peer_ids, ())
        try:
            with self._register_allreduce_group(info):
                self._running_groups[allreduce.group_id].set_result(allreduce)
                difference = await asyncio.wait_for(allreduce.reduce(), timeout=deadline_s)
        except asyncio.TimeoutError:
            self._deadline.missed()
            causes = "; ".join(causes_of(allreduce.failures, names))
            raise NoRound("failed", f"the all-reduce {TOOK_LONGER} {deadline_s:.1f} s: {causes}") from None
        if allreduce.received_share < 1.0:
            failures = await self._explain(allreduce.failures, gathering.present)
            causes = "; ".join(causes_of(failures, names)) or "parts are missing"
            raise NoRound(
                "partial" if allreduce.received_share > 0 else "failed",
                f"{allreduce.received_share:.0%} {INCOMPLETE}: {causes}",
            )
        self._deadline.met(time.monotonic() - started, num_bytes)
        return difference

    async def _explain(self, failures: Mapping[str, str], present: Sequence[str]) -> Mapping[str, str]:
        """Who broke the round. To those that lose a stream, one that gave up because of a dead groupmate looks dead
        too, and who comes late finds that all the others have ended: asking tells them apart."""
        if LOST not in failures.values() and len(failures) == 1:
            return failures
        gone = await self._rendezvous.find_gone(present)
        explained = {LOST, GAVE_UP, HAD_ENDED} if gone else {LOST}
        others = {peer_id: why for peer_id, why in failures.items() if why not in explained}
        return {**others, **dict.fromkeys(gone, LOST)} or failures

    def _prepare(
        self, gathering: Gathering, outgoing: Sequence[tuple[torch.Tensor, CompressionBase]], weight: float
    ) -> StrictAllReduce:
        peer_ids = tuple(PeerID.from_base58(peer_id) for peer_id in gathering.present)
        tensors, codecs = zip(*outgoing, strict=True)
        return StrictAllReduce(
            traffic=self._traffic,
            p2p=self._p2p,
            servicer_type=type(self),
            prefix=self.prefix,
            tensors=tensors,
            group_id=gathering.group_id,
            ordered_peer_ids=peer_ids,
            peer_fractions=(1.0 / len(peer_ids),) * len(peer_ids),
            weight=weight,
            codecs=codecs,
            part_size_bytes=min(DEFAULT_PART_SIZE_BYTES, 4 * -(-self.total_size // len(peer_ids))),  # whole elements
        )
