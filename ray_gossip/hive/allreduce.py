"""One all-reduce that knows whether it is complete.

hivemind's `AllReduceRunner` is built to go on: parts that did not arrive become zero deltas, a lost sender is left out
of the mean, and the round still returns. For us a round counts only if every part of every groupmate is in it, so here
a loss voids the round: the reducer that misses a sender answers the others with an error at once, everybody sees it
within one round trip, and nobody waits for the time-out.

Reaches into hivemind 1.1 (`_ban_sender`, `_communicate_with_peer`, `_generate_input_for_peer`,
`_accumulate_parts_streaming`, `TensorPartReducer.current_part_future`); `tests/swarm` fails when these change.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

import torch
from hivemind.averaging.allreduce import AllreduceException, AllReduceRunner
from hivemind.p2p import P2PContext, P2PDaemonError, P2PHandlerError, PeerID
from hivemind.proto import averaging_pb2

# What hivemind raises when the other side of a stream is gone, or says that it cannot go on.
_LOST = (AllreduceException, P2PDaemonError, P2PHandlerError, StopAsyncIteration, ConnectionError, EOFError)


_LINGER_S = 5.0  # a receiver that has not closed its stream by then is gone


@dataclass
class Traffic:
    """Counts what a peer sends. It outlives a round: the last answers to others may leave after a round's end."""

    bytes_sent: int = 0

    def take(self) -> int:
        """Bytes since the last take."""
        taken, self.bytes_sent = self.bytes_sent, 0
        return taken


class StrictAllReduce(AllReduceRunner):
    """All-reduce of one flat tensor in a fixed group. After `reduce()`: `failures` says who or what was missing."""

    def __init__(self, *, traffic: Traffic, **kwargs: Any) -> None:
        self.failures: dict[PeerID, str] = {}  # groupmate (or this peer) -> what went wrong
        self._traffic = traffic
        super().__init__(**kwargs)

    async def reduce(self) -> torch.Tensor:
        """The difference between the group's mean and the local tensor. Valid only if `received_share` is 1."""
        (delta,) = [delta async for delta in self]
        return delta

    @property
    def received_share(self) -> float:
        """Share of the elements whose group mean has arrived, 0..1."""
        container = self.tensor_part_container
        return 1.0 - float(container.failed_size) / float(container.total_size)

    async def _ban_sender(self, peer_id: PeerID) -> None:
        """A sender is gone. Unless all its parts are in the mean already, this reducer's round is void."""
        self.banned_senders.add(peer_id)
        self.all_senders_started.set()  # nobody needs to wait for the others any more
        reducer = self.tensor_part_reducer
        if reducer.finished.is_set():
            return
        self.failures.setdefault(peer_id, "was lost in the all-reduce")
        if not reducer.current_part_future.done():
            reducer.current_part_future.set_exception(AllreduceException(f"{peer_id} was lost"))
            reducer.current_part_future.exception()  # mark as retrieved: there may be nobody waiting for it
        reducer.finished.set()

    async def _communicate_with_peer(self, peer_id: PeerID) -> None:
        try:
            await super()._communicate_with_peer(peer_id)
        except BaseException as error:
            if isinstance(error, Exception):
                self.failures.setdefault(peer_id, _cause(error))
            if peer_id == self.peer_id:  # hivemind registers a failed reducer only for the others
                self.tensor_part_container.register_failed_reducer(self.ordered_peer_ids.index(peer_id))
            else:
                await self._ban_sender(peer_id)  # who does not reduce for us will not send to us either
            raise

    def _get_peer_stub(self, peer: PeerID) -> _ClosesFirst:
        num_parts = self.tensor_part_container.num_parts_by_peer[self.ordered_peer_ids.index(peer)]
        return _ClosesFirst(super()._get_peer_stub(peer), num_parts)

    async def rpc_aggregate_part(
        self, stream: AsyncIterator[averaging_pb2.AveragingData], context: P2PContext
    ) -> AsyncIterator[averaging_pb2.AveragingData]:
        async for message in super().rpc_aggregate_part(stream, context):
            yield message
        await asyncio.sleep(_LINGER_S)  # ended by the other side, see _ClosesFirst

    async def _generate_input_for_peer(self, peer_index: int) -> AsyncIterator[averaging_pb2.AveragingData]:
        async for message in super()._generate_input_for_peer(peer_index):
            self._traffic.bytes_sent += message.ByteSize()
            yield message

    async def _accumulate_parts_streaming(
        self, stream: AsyncIterator[averaging_pb2.AveragingData], sender_index: int
    ) -> AsyncIterator[averaging_pb2.AveragingData]:
        try:
            async for message in super()._accumulate_parts_streaming(stream, sender_index):
                self._traffic.bytes_sent += message.ByteSize()
                yield message
        except Exception as error:
            self.failures.setdefault(self.sender_peer_ids[sender_index], _cause(error))
            raise


class _ClosesFirst:
    """A reducer's stub whose answers end with the last part: who receives closes the stream, not who sends.

    When the sender closes, libp2p's daemon sometimes drops what is still in flight (once in about 2,000 streams of
    48 KB), and a complete round looks like a lost groupmate.
    """

    def __init__(self, stub: Any, num_parts: int) -> None:
        self._stub, self._num_parts = stub, num_parts

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
                    yield await anext(answers)
                except StopAsyncIteration:
                    return


def _cause(error: Exception) -> str:
    if isinstance(error, asyncio.TimeoutError):
        return "did not answer in time"
    if isinstance(error, AllreduceException) and "INTERNAL_ERROR" in str(error):
        return "could not average and said so"
    if isinstance(error, _LOST):
        return f"was lost in the all-reduce ({type(error).__name__}: {error})"
    return f"could not be decoded ({type(error).__name__}: {error})"
