"""One all-reduce that knows whether it is complete.

hivemind's `AllReduceRunner` is built to go on: parts that did not arrive become zero deltas, a lost sender is left out
of the mean, and the round still returns. For us a round counts only if every part of every groupmate is in it, so here
a loss voids the round: the reducer that misses a sender answers the others with an error at once, everybody sees it
within one round trip, and nobody waits for the time-out.

Reaches into hivemind 1.1 (`_ban_sender`, `_communicate_with_peer`, `_generate_input_for_peer`, `_get_peer_stub`,
`_accumulate_parts_streaming`, `finalize`, `_future`, the counters of `TensorPartReducer` and `TensorPartContainer`);
`tests/swarm/test_hivemind_is_as_we_know_it.py` fails when these change.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from hivemind.averaging.allreduce import AllreduceException, AllReduceRunner
from hivemind.averaging.partition import TensorPartReducer
from hivemind.compression import CompressionBase, PerTensorCompression
from hivemind.p2p import P2PContext, P2PDaemonError, P2PHandlerError, PeerID
from hivemind.proto import averaging_pb2

from ray_gossip.causes import BAD_PART, GAVE_UP, HAD_ENDED, LOST, NO_ANSWER
from ray_gossip.hive.parts import BadPart, check_parts, collect
from ray_gossip.hive.robust_reducer import RobustReducer

# What hivemind raises when the other side of a stream is gone, or says that it cannot go on.
_GONE = (AllreduceException, P2PDaemonError, P2PHandlerError, StopAsyncIteration, ConnectionError, EOFError)
_LINGER_S = 5.0  # a receiver that has not closed its stream by then is gone


@dataclass
class Traffic:
    """Counts what a peer sends. It outlives a round: the last answers to others may leave after a round's end."""

    bytes_sent: int = 0
    _late: int = 0  # of them, those that belong to an earlier round

    def begin_round(self) -> None:
        """What has been sent since the last take belongs to an earlier round."""
        self._late = self.bytes_sent

    def take(self, *, with_late: bool = True) -> int:
        """Bytes since the last take.

        Args:
            with_late: what belongs to an earlier round, too; else the next one may have it.
        """
        left = 0 if with_late else self._late
        taken, self.bytes_sent, self._late = self.bytes_sent - left, left, left
        return taken


class _Refusal(NamedTuple):
    """A groupmate's answer that it cannot go on."""

    blamed: PeerID | None  # the peer that is the cause
    words: str


class StrictAllReduce(AllReduceRunner):
    """All-reduce of flat tensors in a fixed group. After `reduce()`: `failures` names those that broke it, and how.

    Args:
        codecs: one for each tensor.
        robust: as `gossip.robust`.
        all_alike: nobody may weigh more than another.
        out: [size], where the difference is written.
    """

    def __init__(
        self,
        *,
        traffic: Traffic,
        codecs: Sequence[CompressionBase],
        robust: str = "none",
        all_alike: bool = False,
        out: torch.Tensor,
        **kwargs: Any,
    ) -> None:
        self._traffic = traffic
        self._seen: dict[PeerID, str] = {}  # peer, or this peer -> what went wrong before this reducer gave up
        self._gave_up: dict[PeerID, _Refusal] = {}  # groupmate -> what it says
        self._failed_stream: PeerID | None = None  # whose parts this reducer could not take
        super().__init__(compression=PerTensorCompression(codecs), **kwargs)
        self.tensor_part_reducer: TensorPartReducer = (
            self.tensor_part_reducer
            if robust == "none"
            else RobustReducer.in_place_of(self.tensor_part_reducer, rule=robust)
        )
        check_parts(self.tensor_part_reducer, weight=self.weight if all_alike else None)
        collect(self.tensor_part_container, out)

    async def reduce(self) -> torch.Tensor:
        """The difference between the group's mean and the local tensors, one after the other, in `out`. Valid only if
        `received_share` is 1."""
        (difference,) = [each async for each in self]
        return difference

    @property
    def received_share(self) -> float:
        """Share of the elements whose group mean has arrived, 0..1."""
        container = self.tensor_part_container
        return 1.0 - float(container.failed_size) / float(container.total_size)

    @property
    def far(self) -> list[str]:
        """Peer ids of those whose tensors are far from the others', as far as this peer's part of them shows."""
        reducer = self.tensor_part_reducer
        rows = reducer.far if isinstance(reducer, RobustReducer) else []
        return [self.sender_peer_ids[row].to_base58() for row in rows]

    @property
    def failures(self) -> dict[str, str]:
        """Peer id -> what went wrong with it. A peer that gave up because of another is not named, that other is."""
        return {
            peer_id.to_base58(): self._gave_up[peer_id].words
            if peer_id in self._gave_up and peer_id not in self._senders_of_bad_parts
            else self._seen.get(peer_id, LOST)
            for peer_id in self._culprits()
        }

    @property
    def _senders_of_bad_parts(self) -> set[PeerID]:
        """Whomever they blame themselves: this peer has seen it."""
        return {peer_id for peer_id, words in self._seen.items() if words == BAD_PART}

    def _culprits(self) -> list[PeerID]:
        innocent = {peer_id for peer_id, refusal in self._gave_up.items() if refusal.blamed is not None}
        innocent -= self._senders_of_bad_parts
        blamed = Counter(refusal.blamed for refusal in self._gave_up.values())
        del blamed[None], blamed[self.peer_id]
        culprits = (blamed.keys() | self._seen.keys() | self._gave_up.keys()) - innocent
        if not culprits:  # they blame each other
            most = max(blamed.values(), default=0)
            culprits = {peer_id for peer_id, count in blamed.items() if count == most} or {*self._gave_up}
        return [peer_id for peer_id in self.ordered_peer_ids if peer_id in culprits]

    def _to_blame(self) -> PeerID | None:
        """What others are told; None: this peer. It is, where one of them says so, and this one has seen nothing worse
        than that it was refused: whoever hears this first has nothing else to go by."""
        is_blamed = any(refusal.blamed == self.peer_id for refusal in self._gave_up.values())
        if is_blamed and not self._senders_of_bad_parts:
            return None
        culprit = next(iter(self._culprits()), self.peer_id)
        return None if culprit == self.peer_id else culprit

    def finalize(self, *, cancel: bool = False, exception: BaseException | None = None) -> None:
        """End the round. If it is unfinished, name those that are late and tell those that wait for this reducer."""
        if (cancel or exception is not None) and not self._future.done():
            late = [peer_id for peer_id in self._late() if peer_id not in self._seen]
            if late:  # it explains the others: those that have just closed their streams ran into the same deadline
                self._seen = dict.fromkeys(late, NO_ANSWER)
            self._give_up()
        super().finalize(cancel=cancel, exception=exception)

    def _late(self) -> list[PeerID]:
        """The peers that this one waits for: those whose part its own reducer lacks; if it lacks none, the other
        reducers."""
        reducer, container = self.tensor_part_reducer, self.tensor_part_container
        received = zip(self.sender_peer_ids, reducer.num_parts_received, strict=True)
        answered = zip(container._outputs_registered_by_peer, container.num_parts_by_peer, strict=True)
        senders = [peer_id for peer_id, num_parts in received if num_parts <= reducer.current_part_index]
        return senders or [
            peer_id
            for peer_id, (num_parts, expected) in zip(self.ordered_peer_ids, answered, strict=True)
            if num_parts < expected
        ]

    def _give_up(self) -> None:
        """Void this reducer's part of the round: all that wait for it get an error at once."""
        reducer = self.tensor_part_reducer
        if reducer.finished.is_set():
            return
        if not reducer.current_part_future.done():
            reducer.current_part_future.set_exception(AllreduceException("the round is void"))
            reducer.current_part_future.exception()  # mark as retrieved: there may be nobody waiting for it
        reducer.finished.set()

    async def _ban_sender(self, peer_id: PeerID) -> None:
        """The stream of a sender has ended too early."""
        if not self.tensor_part_reducer.finished.is_set():
            self._failed_stream = peer_id
        self._lose(peer_id)

    def _lose(self, peer_id: PeerID) -> None:
        """A groupmate is gone. Unless all its parts are in the mean already, this reducer's round is void."""
        self.banned_senders.add(peer_id)
        self.all_senders_started.set()  # nobody needs to wait for the others any more
        if not self.tensor_part_reducer.finished.is_set():
            if not self._seen:
                self._seen[peer_id] = LOST
            self._give_up()

    async def _communicate_with_peer(self, peer_id: PeerID) -> None:
        try:
            await super()._communicate_with_peer(peer_id)
        except BaseException as error:
            if self._future.done():  # the round is over, this is only how its tasks end
                raise
            if peer_id == self.peer_id:  # hivemind registers a failed reducer only for the others
                self.tensor_part_container.register_failed_reducer(self.ordered_peer_ids.index(peer_id))
            else:
                self._note(peer_id, error)
                self._lose(peer_id)  # a peer that does not reduce for us will not send to us either
            raise

    def _note(self, peer_id: PeerID, error: BaseException) -> None:
        """Remember what went wrong between this peer and a groupmate."""
        if isinstance(error, BadPart):
            self._seen[peer_id] = BAD_PART
        elif isinstance(error, _GONE):
            self._seen.setdefault(peer_id, LOST)
        elif isinstance(error, Exception):
            self._seen.pop(peer_id, None)
            self._seen[self.peer_id] = f"could not decode what it received ({type(error).__name__}: {error})"

    def _get_peer_stub(self, peer: PeerID) -> _ClosesFirst:
        num_parts = self.tensor_part_container.num_parts_by_peer[self.ordered_peer_ids.index(peer)]

        def on_refusal(answer: averaging_pb2.AveragingData) -> None:
            blamed = PeerID(answer.group_id)
            self._gave_up[peer] = _Refusal(
                blamed if blamed in self.ordered_peer_ids else None,
                HAD_ENDED if answer.code == averaging_pb2.BAD_GROUP_ID else GAVE_UP,
            )

        return _ClosesFirst(super()._get_peer_stub(peer), num_parts, on_refusal)

    async def rpc_aggregate_part(
        self, stream: AsyncIterator[averaging_pb2.AveragingData], context: P2PContext
    ) -> AsyncIterator[averaging_pb2.AveragingData]:
        async for message in super().rpc_aggregate_part(stream, context):
            if message.code == averaging_pb2.INTERNAL_ERROR:
                culprit = self._to_blame()
                message.group_id = b"" if culprit is None else culprit.to_bytes()
            yield message
        await asyncio.sleep(_LINGER_S)  # ended by the other side, see _ClosesFirst

    async def _generate_input_for_peer(self, peer_index: int) -> AsyncIterator[averaging_pb2.AveragingData]:
        async for message in super()._generate_input_for_peer(peer_index):
            self._traffic.bytes_sent += message.ByteSize()
            yield message

    async def _accumulate_parts_streaming(
        self, stream: AsyncIterator[averaging_pb2.AveragingData], sender_index: int
    ) -> AsyncIterator[averaging_pb2.AveragingData]:
        sender = self.sender_peer_ids[sender_index]
        try:
            async for message in super()._accumulate_parts_streaming(stream, sender_index):
                self._traffic.bytes_sent += message.ByteSize()
                yield message
        except Exception as error:
            if self._failed_stream == sender:  # else it fails because another has made the round void
                self._note(sender, error)
            raise


class _ClosesFirst:
    """A reducer's stub whose answers end with the last part: the receiver closes the stream, not the sender.

    When the sender closes, libp2p's daemon sometimes drops what is still in flight (once in about 2,000 streams of
    48 KB), and a complete round looks like a lost groupmate.
    """

    def __init__(self, stub: Any, num_parts: int, on_refusal: Callable[[averaging_pb2.AveragingData], None]) -> None:
        self._stub, self._num_parts, self._on_refusal = stub, num_parts, on_refusal

    async def rpc_aggregate_part(
        self, parts: AsyncIterator[averaging_pb2.AveragingData]
    ) -> AsyncIterator[averaging_pb2.AveragingData]:
        return self._first(await self._stub.rpc_aggregate_part(parts))

    async def _first(
        self, answers: AsyncGenerator[averaging_pb2.AveragingData, None]
    ) -> AsyncIterator[averaging_pb2.AveragingData]:
        async with contextlib.aclosing(answers):
            for _ in range(self._num_parts):
                try:
                    answer = await anext(answers)
                except StopAsyncIteration:
                    return
                if answer.code != averaging_pb2.AVERAGED_PART:
                    self._on_refusal(answer)
                yield answer
