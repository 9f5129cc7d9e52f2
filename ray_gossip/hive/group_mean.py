"""The all-reduce of a group that has met, within a deadline that is learned.

Reaches into hivemind 1.1 (`DecentralizedAverager._register_allreduce_group`, `_running_groups`,
`_pending_groups_registered`, `_p2p`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from hivemind.averaging.group_info import GroupInfo
from hivemind.averaging.partition import DEFAULT_PART_SIZE_BYTES, AllreduceException
from hivemind.compression import CompressionBase, CompressionInfo
from hivemind.p2p import PeerID

from ray_gossip.causes import FAR_OUT, GAVE_UP, HAD_ENDED, HAS_LEFT, INCOMPLETE, LOST, TOOK_LONGER
from ray_gossip.config import GossipConfig
from ray_gossip.gossip.deadline import Deadline
from ray_gossip.gossip.meeting import Gathering, causes_of
from ray_gossip.gossip.round import NoRound
from ray_gossip.hive.allreduce import StrictAllReduce, Traffic
from ray_gossip.hive.mixer import Mixer


class Difference(NamedTuple):
    """Between a group's mean and a state."""

    values: torch.Tensor  # [size]; until the next is computed
    notes: list[str]  # on groupmates whose states are far from the others'


class GroupMean:
    """Computes it for one peer, one group after another. In the sidecar.

    Args:
        averager: hivemind's, whose calls these are.
        find_gone: which of these peer ids do not answer.
        gossip: `robust`, `weight_by_samples`, and the longest that an all-reduce may take.
    """

    def __init__(
        self,
        averager: Any,
        *,
        mixer: Mixer,
        find_gone: Callable[[Sequence[str]], Awaitable[Sequence[str]]],
        gossip: GossipConfig,
    ) -> None:
        self.traffic = Traffic()
        self._averager, self._mixer, self._find_gone = averager, mixer, find_gone
        self._gossip, self._deadline = gossip, Deadline(gossip.allreduce_s)
        self._out = torch.empty(0)  # kept from round to round: fresh memory takes longer than what is written to it

    def expect(self, is_expected: bool) -> None:
        """Whether parts of others may come before this peer knows that its group is complete: they wait then."""
        registered = self._averager._pending_groups_registered
        registered.clear() if is_expected else registered.set()

    async def difference(
        self,
        gathering: Gathering,
        state: torch.Tensor,
        weight: float,
        names: Mapping[str, str],
        *,
        exact: bool,
        begin: int = 0,
    ) -> Difference:
        """The difference between the group's mean and `state`, within the learned deadline. Raises NoRound.

        Args:
            state: [size], or a piece of it, which begins at `begin`.
            names: peer id -> name.
            exact: nothing is compressed.
        """
        outgoing = self._mixer.outgoing(state, exact=exact, anchors=gathering.anchors, begin=begin)
        allreduce = self._prepare(gathering, outgoing, weight, all_alike=exact or not self._gossip.weight_by_samples)
        num_bytes = sum(
            int(4 * len(tensor) * codec.estimate_compression_ratio(CompressionInfo.from_tensor(tensor)))
            for tensor, codec in outgoing
        )
        deadline_s, started = self._deadline.of(num_bytes), time.monotonic()
        info = GroupInfo(allreduce.group_id, allreduce.ordered_peer_ids, ())
        try:
            with self._averager._register_allreduce_group(info):
                self._averager._running_groups[allreduce.group_id].set_result(allreduce)
                difference = await asyncio.wait_for(allreduce.reduce(), timeout=deadline_s)
        except asyncio.TimeoutError:
            self._deadline.missed()
            causes = "; ".join(causes_of(allreduce.failures, names))
            raise NoRound("failed", f"the all-reduce {TOOK_LONGER} {deadline_s:.1f} s: {causes}") from None
        except AllreduceException:  # its averager ends all that runs, see `EndsItsRounds`
            raise NoRound("failed", f"this peer {HAS_LEFT}") from None
        if allreduce.received_share < 1.0:
            failures = await self._explain(allreduce.failures, gathering.present)
            causes = "; ".join(causes_of(failures, names)) or "parts are missing"
            raise NoRound(
                "partial" if allreduce.received_share > 0 else "failed",
                f"{allreduce.received_share:.0%} {INCOMPLETE}: {causes}",
            )
        self._deadline.met(time.monotonic() - started, num_bytes)
        return Difference(difference, causes_of(dict.fromkeys(allreduce.far, FAR_OUT), names))

    async def _explain(self, failures: Mapping[str, str], present: Sequence[str]) -> Mapping[str, str]:
        """The peer that broke the round. To those that lose a stream, one that gave up because of a dead groupmate
        looks dead too, and one that comes late finds that all the others have ended: asking tells them apart."""
        if LOST not in failures.values() and len(failures) == 1:
            return failures
        gone = await self._find_gone(present)
        explained = {LOST, GAVE_UP, HAD_ENDED} if gone else {LOST}
        others = {peer_id: why for peer_id, why in failures.items() if why not in explained}
        return {**others, **dict.fromkeys(gone, LOST)} or failures

    def _prepare(
        self,
        gathering: Gathering,
        outgoing: Sequence[tuple[torch.Tensor, CompressionBase]],
        weight: float,
        *,
        all_alike: bool,
    ) -> StrictAllReduce:
        peer_ids = tuple(PeerID.from_base58(peer_id) for peer_id in gathering.present)
        tensors, codecs = zip(*outgoing, strict=True)
        size = sum(map(len, tensors))
        part_bytes = 4 * -(-size // len(peer_ids))  # whole elements
        if len(self._out) != size:
            self._out = torch.empty(size)
        return StrictAllReduce(
            traffic=self.traffic,
            p2p=self._averager._p2p,
            servicer_type=type(self._averager),
            prefix=self._averager.prefix,
            tensors=tensors,
            group_id=gathering.group_id,
            ordered_peer_ids=peer_ids,
            peer_fractions=(1.0 / len(peer_ids),) * len(peer_ids),
            weight=weight,
            codecs=codecs,
            robust=self._gossip.robust,
            all_alike=all_alike,
            out=self._out,
            part_size_bytes=min(DEFAULT_PART_SIZE_BYTES, part_bytes),
        )
