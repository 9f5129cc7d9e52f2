"""The engine `hivemind`: `hivemind.Optimizer(use_local_updates=True)` as shipped, only observed.

What hivemind does is left as it is; the subclasses here write down what a round really received, which hivemind itself
only logs. The founders' barrier and the final rounds are those of the engine `gossip`: hivemind has neither.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import hivemind
from hivemind.averaging.control import StepControl
from hivemind.averaging.group_info import GroupInfo
from hivemind.optim.state_averager import TrainingStateAverager
from hivemind.utils import MPFuture

from ray_gossip.config import Config
from ray_gossip.errors import SwarmError, UserError
from ray_gossip.hive.charter import Charter
from ray_gossip.hive.engine import FinalResult, StateShape, TrainingState
from ray_gossip.hive.gossip import GossipEngine
from ray_gossip.hive.process import AlwaysForked
from ray_gossip.records import Outcome, Record, RoundReport

_MATCHMAKING_S = 5.0


@dataclass(frozen=True, kw_only=True)
class _Observed:
    """One round, written down in the averager process."""

    wall_time: float
    peer_ids: tuple[str, ...]
    received_share: float
    matchmaking_s: float
    allreduce_s: float
    cause: str


class _ObservedAverager(AlwaysForked, TrainingStateAverager):
    """hivemind's averager, which also says what each round received."""

    _rpc_handlers = None
    _stub_type = None

    def __init__(self, **options: Any) -> None:
        self.observed: multiprocessing.SimpleQueue[_Observed] = multiprocessing.SimpleQueue()
        super().__init__(**options)

    async def _step(self, *, step: StepControl, future_for_init: MPFuture[Any]) -> None:
        started = self._began = time.monotonic()
        self._group: GroupInfo | None = None
        self._share = 0.0
        await super()._step(step=step, future_for_init=future_for_init)
        error = None if step.cancelled() else step.exception()
        if step.cancelled() and self._group is None:
            return  # hivemind gave up a round that it had scheduled ahead
        peer_ids = self._group.peer_ids if self._group is not None else (self.peer_id,)
        self.observed.put(
            _Observed(
                wall_time=time.time(),
                peer_ids=tuple(peer_id.to_base58() for peer_id in peer_ids),
                received_share=self._share,
                matchmaking_s=self._began - started if self._group else time.monotonic() - started,
                allreduce_s=time.monotonic() - self._began if self._group else 0.0,
                cause=(str(error).splitlines() or [type(error).__name__])[0] if error else "",
            )
        )

    async def _run_allreduce_inplace_(self, tensors: Any, group_info: GroupInfo, *args: Any, **kwargs: Any) -> None:
        self._group, self._began = group_info, time.monotonic()
        await super()._run_allreduce_inplace_(tensors, group_info, *args, **kwargs)
        container = (await asyncio.shield(self._running_groups[group_info.group_id])).tensor_part_container
        self._share = 1.0 - container.failed_size / container.total_size


class _ObservedOptimizer(hivemind.Optimizer):
    def _make_state_averager(self, **options: Any) -> _ObservedAverager:
        return _ObservedAverager(
            dht=self.dht,
            prefix=f"{self.run_id}_state_averager",
            min_matchmaking_time=self.matchmaking_time,
            allreduce_timeout=self.allreduce_timeout,
            shutdown_timeout=self.shutdown_timeout,
            offload_optimizer=self.offload_optimizer,
            custom_gradients=self.offload_optimizer,
            status_loglevel=self.status_loglevel,
            next_chunk_timeout=self.next_chunk_timeout,
            client_mode=self.client_mode,
            auxiliary=self.auxiliary,
            start=True,
            **options,
        )


class HivemindEngine:
    """hivemind's own local updates, with `GossipEngine` for joining and for the final rounds."""

    def __init__(
        self,
        config: Config,
        *,
        dht: hivemind.DHT,
        charter: Charter,
        peer_index: int,
        shape: StateShape,
        node: str = "",
        data: str = "",
    ) -> None:
        self.config, self.dht, self.run_id, self.peer_index = config, dht, charter.run_id, peer_index
        self.members: tuple[int, ...] | None = None  # hivemind says nothing of them
        self._ends = GossipEngine(
            config, dht=dht, charter=charter, peer_index=peer_index, shape=shape, node=node, data=data
        )
        self.notices = self._ends.notices
        self._names: dict[str, int] = {}  # peer id -> peer index
        self._rounds = 0
        self._optimizer: _ObservedOptimizer | None = None

    def attach(self, state: TrainingState) -> None:
        """Wrap the trainer's optimizer. hivemind runs one optimizer step with zero gradients here, as shipped."""
        gossip, batch_size = self.config.gossip, self.config.data.batch_size
        matchmaking_s = gossip.matchmaking_s or _MATCHMAKING_S
        if gossip.group_size > 1:
            self._optimizer = state.optimizer = _ObservedOptimizer(
                dht=self.dht,
                run_id=f"{self.run_id}-hivemind",
                optimizer=state.optimizer,
                use_local_updates=True,
                delay_state_averaging=gossip.overlap,
                batch_size_per_step=batch_size,
                # hivemind counts the swarm's samples: this is `steps` local steps of every peer
                target_batch_size=batch_size * (gossip.steps or 1) * self.config.swarm.num_peers,
                matchmaking_time=matchmaking_s,
                averaging_timeout=gossip.allreduce_s,
                shutdown_timeout=1.0,
                averager_opts={
                    "target_group_size": gossip.group_size,
                    "min_group_size": gossip.min_group_size,
                    "averaging_alpha": gossip.alpha,
                    "request_timeout": min(3.0, matchmaking_s / 2),
                },
            )
        self._ends.attach(state)

    def join(self, *, founders: int, local_step: int = 0) -> None:
        """As GossipEngine.join; the rounds are hivemind's own, which count from 0."""
        view = self._ends.join(founders=founders, local_step=local_step)
        self._names = {member.peer_id: member.peer_index for member in view.members}

    def join_running(self) -> int:
        """hivemind's own way to join is by its progress tracker, and knows no rounds."""
        raise UserError("engine=hivemind cannot join a running swarm here; use engine=gossip")

    def tell_driver(self, records: Sequence[Record], *, wait_s: float = 0.0) -> None:
        """There are no guests."""

    def guest_records(self) -> list[Record]:
        """There are no guests."""
        return []

    def after_step(self, local_step: int) -> list[RoundReport]:
        """The rounds that hivemind has ended since the last call."""
        self._ends.averager.signals.stepped(0.0)
        reports: list[RoundReport] = []
        if self._optimizer is not None:
            averager = self._optimizer.state_averager
            if not averager.is_alive():
                raise SwarmError("the averager process of this peer died")
            while not averager.observed.empty():
                reports.append(self._report(averager.observed.get(), local_step))
        return reports

    def finish(self, local_step: int) -> FinalResult:
        """End hivemind's rounds, then mix to agreement as the engine `gossip` does."""
        reports = self.after_step(local_step)
        self._stop_hivemind()
        final = self._ends.finish(local_step)
        return FinalResult(
            reports=reports,
            outcome=final.outcome,
            cause=final.cause,
            agreed=final.agreed,
            bytes_sent=final.bytes_sent,
            sketch=final.sketch,
        )

    def shutdown(self) -> None:
        """Leave the swarm and end both averager processes."""
        self._stop_hivemind()
        self._ends.shutdown()

    def _stop_hivemind(self) -> None:
        optimizer, self._optimizer = self._optimizer, None
        if optimizer is None or not optimizer.is_alive():
            return
        if optimizer.scheduled_state is not None:
            optimizer.scheduled_state.cancel()  # or its shutdown waits for the round, as long as averaging_timeout
        optimizer.tracker.shutdown(1.0)
        optimizer.state_averager.shutdown()

    def _report(self, observed: _Observed, local_step: int) -> RoundReport:
        group = tuple(sorted(self._names[peer_id] for peer_id in observed.peer_ids if peer_id in self._names))
        outcome: Outcome
        if len(observed.peer_ids) == 1:
            outcome = "alone"
        elif observed.cause:
            outcome = "failed"
        else:
            outcome = "averaged" if observed.received_share == 1.0 else "partial"
        self._rounds += 1
        return RoundReport(
            peer_index=self.peer_index,
            wall_time=observed.wall_time,
            round=self._rounds - 1,
            outcome=outcome,
            cause=observed.cause or ("" if outcome == "averaged" else f"{observed.received_share:.0%} of the mean"),
            group=group,
            local_step=local_step,
            staleness_steps=0,
            matchmaking_s=observed.matchmaking_s,
            allreduce_s=observed.allreduce_s,
            blocked_s=0.0,
            bytes_sent=0,
            moved=0.0,
        )
