"""Faults that a test switches on inside a living peer's averager, at an exact part of an all-reduce."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import AsyncIterator, Sequence
from enum import IntEnum
from typing import Any

import hivemind.averaging.allreduce
import torch
from hivemind.compression import serialize_torch_tensor
from hivemind.proto import averaging_pb2

import ray_gossip.hive.group_mean
from ray_gossip.config import Config
from ray_gossip.hive.allreduce import StrictAllReduce
from ray_gossip.testing import GossipPeer
from tests.swarm.changed import fork_sidecars


class Fault(IntEnum):
    NONE = 0
    KILL_PEER = 1  # the training process and all its children
    KILL_AVERAGER = 2  # only the process that averages
    STOP_AVERAGER = 3  # as a process does that the kernel gives no time; ended by SIGCONT
    DECODER_RAISES = 4
    SENDS_ONE_NUMBER = 5  # instead of a part
    COUNTS_DOUBLE = 6  # it gives its part another weight than agreed


class Moment(IntEnum):
    """When it strikes: before a part is sent to its reducer, or before the mean of a part is answered."""

    SENDING = 0
    ANSWERING = 1


class Part(IntEnum):
    """Which part of a stream it strikes at."""

    FIRST = 0
    MIDDLE = 1
    LAST = 2

    def index(self, num_parts: int) -> int:
        return (0, num_parts // 2, num_parts - 1)[self]


class FaultPlan:
    """Shared by a peer's processes: the training process switches, the averager obeys."""

    def __init__(self) -> None:
        self._shared = torch.zeros(3, dtype=torch.int64).share_memory_()  # fault, moment, part

    def set(self, fault: Fault, moment: Moment, part: Part) -> None:
        self._shared[1:] = torch.tensor([moment, part])
        self._shared[0] = fault

    def strikes(self, moment: Moment, part: int, num_parts: int) -> Fault:
        if moment == self._shared[1] and part == Part(int(self._shared[2])).index(num_parts):
            return Fault(int(self._shared[0]))
        return Fault.NONE

    @property
    def fault(self) -> Fault:
        return Fault(int(self._shared[0]))

    def clear(self) -> None:
        self._shared[0] = Fault.NONE


class FaultyPeer(GossipPeer):
    """A peer with a fault plan, empty at first."""

    def __init__(self, config: Config, peer_index: int, size: int, initial_peers: Sequence[str]) -> None:
        self.plan = FaultPlan()
        peer_pid = os.getpid()
        fork_sidecars(lambda: _install(self.plan, peer_pid))
        super().__init__(config, peer_index, size, initial_peers)

    def fail_at(self, fault: Fault, moment: Moment = Moment.SENDING, part: Part = Part.FIRST) -> None:
        self.plan.set(fault, moment, part)

    def recover(self) -> None:
        self.plan.clear()

    def averager_pid(self) -> int:
        return self.network.pid


def _install(plan: FaultPlan, peer_pid: int) -> None:

    def strike(moment: Moment, part: int, num_parts: int) -> Fault:
        fault = plan.strikes(moment, part, num_parts)
        if fault == Fault.KILL_PEER:
            os.kill(peer_pid, signal.SIGKILL)
        if fault in (Fault.KILL_PEER, Fault.KILL_AVERAGER):
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == Fault.STOP_AVERAGER:
            plan.clear()
            # to this thread, which stops before it goes on: of a process, any thread takes it, when it gets a core
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        return fault

    class FaultyAllReduce(StrictAllReduce):
        async def _generate_input_for_peer(self, peer_index: int) -> AsyncIterator[averaging_pb2.AveragingData]:
            part = 0
            async for message in super()._generate_input_for_peer(peer_index):
                fault = strike(Moment.SENDING, part, self.tensor_part_container.num_parts_by_peer[peer_index])
                if fault == Fault.SENDS_ONE_NUMBER:
                    message.tensor_part.CopyFrom(serialize_torch_tensor(torch.zeros(1)))
                if fault == Fault.COUNTS_DOUBLE:
                    message.weight = 2.0
                yield message
                part += 1

        async def _accumulate_parts_streaming(
            self, stream: AsyncIterator[averaging_pb2.AveragingData], sender_index: int
        ) -> AsyncIterator[averaging_pb2.AveragingData]:
            part = 0
            async for message in super()._accumulate_parts_streaming(stream, sender_index):
                strike(Moment.ANSWERING, part, self.tensor_part_reducer.num_parts)
                yield message
                part += 1

    decode = hivemind.averaging.allreduce.deserialize_torch_tensor

    def decode_or_raise(serialized: Any) -> torch.Tensor:
        if plan.fault == Fault.DECODER_RAISES:
            raise TypeError("only 0-dimensional arrays can be converted to Python scalars")
        return decode(serialized)

    ray_gossip.hive.group_mean.StrictAllReduce = FaultyAllReduce  # type: ignore[attr-defined]
    hivemind.averaging.allreduce.deserialize_torch_tensor = decode_or_raise
