"""The engine `hivemind`: `hivemind.Optimizer(use_local_updates=True)` as shipped, only observed.

What hivemind does is left as it is; the subclasses here write down what a round really received, which hivemind itself
only logs. The founders' barrier and the final rounds are those of the engine `gossip`: hivemind has neither.

Its options are those that its documentation and its own tests have for small swarms on a fast network, but for one:
`delay_state_averaging` is off. A local update waits for a round in the background anyway, and the progress tracker
takes that wait for progress of the others: the next round is then due at once, and so on after every local step.
"""

from __future__ import annotations

import asyncio
import dataclasses
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, AsyncIterator, ClassVar  # noqa: UP035 - hivemind knows an RPC's stream by this one only

import hivemind
from hivemind.averaging.control import StepControl
from hivemind.averaging.group_info import GroupInfo
from hivemind.optim.state_averager import TrainingStateAverager
from hivemind.p2p import P2P, P2PContext, PeerID
from hivemind.proto import averaging_pb2
from hivemind.utils import MPFuture

from ray_gossip.addresses import Ports
from ray_gossip.config import Config
from ray_gossip.errors import SwarmError, UserError
from ray_gossip.gossip.engine import GossipEngine
from ray_gossip.gossip.protocols import FinalResult, TrainingState
from ray_gossip.gossip.seat import Listen, Seat
from ray_gossip.hive.allreduce import Traffic
from ray_gossip.hive.indices import exchange_names
from ray_gossip.hive.process import AlwaysForked, NetworkProcesses, guard_forks, quiet_hivemind, start_dht, stop_dht
from ray_gossip.hive.repairs import EndsItsRounds
from ray_gossip.records import Outcome, Record, RoundReport

_MATCHMAKING_S = 3.0  # as in hivemind's quickstart
_BYTES_PER_S = 100e6 / 8  # of a network, as in hivemind's example
# hivemind is made for intervals of minutes, and by default looks at the swarm's progress every 0.5 to 10 s, for the
# first time after 3 s. These are the values of its own tests of short runs.
_REFRESH_S = {"min_refresh_period": 0.1, "default_refresh_period": 0.2, "max_refresh_period": 0.5}


@dataclass(frozen=True, kw_only=True)
class _Observed:
    """One round, written down in the averager process."""

    wall_time: float
    peer_ids: tuple[str, ...]
    received_share: float
    matchmaking_s: float
    allreduce_s: float
    bytes_sent: int
    cause: str


class _CountedStub:
    """A groupmate's stub; counts the parts that it is sent."""

    def __init__(self, stub: Any, traffic: Traffic) -> None:
        self._stub, self._traffic = stub, traffic

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stub, name)

    async def rpc_aggregate_part(self, parts: AsyncIterator[averaging_pb2.AveragingData]) -> Any:
        return await self._stub.rpc_aggregate_part(_counted(parts, self._traffic))


async def _counted(
    messages: AsyncIterator[averaging_pb2.AveragingData], traffic: Traffic
) -> AsyncIterator[averaging_pb2.AveragingData]:
    async for message in messages:
        traffic.bytes_sent += message.ByteSize()
        yield message


class _ObservedAverager(AlwaysForked, EndsItsRounds, TrainingStateAverager):
    """hivemind's averager, which also says what each round received, and sent."""

    _rpc_handlers = None
    _stub_type = None
    _traffic: ClassVar = Traffic()  # of this process, which has one averager

    @classmethod
    def get_stub(cls, p2p: P2P, peer: PeerID, *, namespace: str | None = None) -> Any:
        return _CountedStub(super().get_stub(p2p, peer, namespace=namespace), cls._traffic)

    def __init__(self, **options: Any) -> None:
        self.observed: multiprocessing.SimpleQueue[_Observed] = multiprocessing.SimpleQueue()
        super().__init__(**options)

    async def _step(self, *, step: StepControl, future_for_init: MPFuture[Any]) -> None:
        started = self._began = time.monotonic()
        self._group: GroupInfo | None = None
        self._share = 0.0
        await super()._step(step=step, future_for_init=future_for_init)
        error = None if step.cancelled() else step.exception()
        if step.weight == 0 or (step.cancelled() and self._group is None):
            return  # a round scheduled ahead, of which hivemind takes nothing: it gave it up, or keeps others company
        peer_ids = self._group.peer_ids if self._group is not None else (self.peer_id,)
        self.observed.put(
            _Observed(
                wall_time=time.time(),
                peer_ids=tuple(peer_id.to_base58() for peer_id in peer_ids),
                received_share=self._share,
                matchmaking_s=self._began - started if self._group else time.monotonic() - started,
                allreduce_s=time.monotonic() - self._began if self._group else 0.0,
                bytes_sent=self._traffic.take(),
                cause=(str(error).splitlines() or [type(error).__name__])[0] if error else "",
            )
        )

    async def _run_allreduce_inplace_(self, tensors: Any, group_info: GroupInfo, *args: Any, **kwargs: Any) -> None:
        self._group, self._began = group_info, time.monotonic()
        await super()._run_allreduce_inplace_(tensors, group_info, *args, **kwargs)
        container = (await asyncio.shield(self._running_groups[group_info.group_id])).tensor_part_container
        self._share = 1.0 - container.failed_size / container.total_size

    async def rpc_aggregate_part(
        self, stream: AsyncIterator[averaging_pb2.AveragingData], context: P2PContext
    ) -> AsyncIterator[averaging_pb2.AveragingData]:
        async for message in _counted(super().rpc_aggregate_part(stream, context), self._traffic):
            yield message


class _ObservedOptimizer(hivemind.Optimizer):
    """hivemind's optimizer with that averager, which also says how long local steps stood still."""

    blocked_s = 0.0  # in the last round

    def _update_global_epoch(self, grad_scaler: Any) -> None:
        started = time.monotonic()
        super()._update_global_epoch(grad_scaler)
        self.blocked_s = time.monotonic() - started

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

    def __init__(self, config: Config, ends: GossipEngine, seat: Seat) -> None:
        self.config, self._ends, self._seat, self.peer_index = config, ends, seat, seat.peer_index
        self.members: tuple[int, ...] | None = None  # hivemind says nothing of them
        guard_forks()
        quiet_hivemind()
        host = seat.multiaddrs[0].partition("/tcp/")[0]
        self._ports = Ports(config.swarm.port_range)
        listen = Listen((f"{host}/tcp/0",), secret=seat.secret).within(self._ports)
        self.dht = start_dht(initial_peers=seat.multiaddrs, listen=listen, start_s=config.swarm.start_s, signs=False)
        self._network = NetworkProcesses(self.dht)
        self.run_id = seat.charter.run_id
        self.notices = self._ends.notices
        self._averaged_bytes = 4 * ends.averager.snapshot.numel()
        self._names: dict[str, int] = {}  # peer id -> peer index
        self._rounds = 0
        self._optimizer: _ObservedOptimizer | None = None

    def attach(self, state: TrainingState) -> None:
        """Wrap the trainer's optimizer. hivemind runs one optimizer step with zero gradients here, as shipped."""
        gossip, batch_size = self.config.gossip, self.config.data.batch_size * self.config.train.accumulate
        matchmaking_s = gossip.matchmaking_s or _MATCHMAKING_S
        round_s = matchmaking_s + 2 * self._averaged_bytes / _BYTES_PER_S  # which hivemind advises to double
        if gossip.group_size > 1:
            self._optimizer = state.optimizer = _ObservedOptimizer(
                dht=self.dht,
                run_id=f"{self.run_id}-hivemind",
                optimizer=state.optimizer,
                use_local_updates=True,
                delay_state_averaging=False,
                batch_size_per_step=batch_size,
                # hivemind counts the swarm's samples: this is `steps` local steps of every peer
                target_batch_size=batch_size * (gossip.steps or 1) * self.config.swarm.num_peers,
                matchmaking_time=matchmaking_s,
                # also how long the last peer stands still in a round from which all others have left
                averaging_timeout=min(gossip.allreduce_s, 2 * round_s),
                shutdown_timeout=1.0,
                tracker_opts=_REFRESH_S,
                averager_opts={
                    # else a peer that is late by a round stays so, and takes the next one for due after every step
                    "sync_epoch_when_averaging": True,
                    "target_group_size": gossip.group_size,
                    "min_group_size": gossip.min_group_size,
                    "averaging_alpha": gossip.alpha,
                    "request_timeout": min(3.0, matchmaking_s / 2),
                },
            )
        self._ends.attach(state)

    def join(self, *, founders: int, local_step: int = 0, has_taken_over: bool = False) -> None:
        """As GossipEngine.join; the rounds are hivemind's own, which count from 0."""
        view = self._ends.join(founders=founders, local_step=local_step, has_taken_over=has_taken_over)
        self._names = exchange_names(self.dht, self.run_id, self.peer_index, count=len(view.members), within_s=5.0)
        if self._optimizer is not None:  # its clock has run since `attach`: the wait for others is no slow local step
            self._optimizer.tracker.report_local_progress(self._optimizer.local_epoch, samples_accumulated=0)

    def join_running(self, *, has_model: bool = False) -> int:
        """hivemind's own way to join is by its progress tracker, and knows no rounds."""
        raise UserError("engine=hivemind cannot join a running swarm here; use engine=gossip")

    def settle(self, local_step: int, *, within_s: float) -> list[RoundReport]:
        """Its rounds end within a local step."""
        return []

    def restore(self, local_step: int, why: str) -> list[RoundReport]:
        """hivemind's own way to take over a model is by its progress tracker."""
        raise UserError("engine=hivemind takes over nobody's model here; use engine=gossip")

    def tell_driver(self, records: Sequence[Record], *, wait_s: float = 0.0) -> None:
        """There are no guests."""

    def guest_records(self) -> list[Record]:
        """There are no guests."""
        return []

    def after_step(self, local_step: int) -> list[RoundReport]:
        """The rounds that hivemind has ended since the last call."""
        self._ends.averager.signals.stepped(0.0)
        self._ends.averager.check()
        if dead := self._network.dead:
            raise SwarmError(f"the {dead} of this peer died")
        if self._optimizer is None:
            return []
        if not self._optimizer.is_alive():
            raise SwarmError("the averager process of this peer died")
        return self._reports(self._optimizer, local_step)

    def finish(self, local_step: int) -> FinalResult:
        """Leave hivemind's rounds as it does itself, then mix to agreement as the engine `gossip` does."""
        reports = self.after_step(local_step)
        optimizer, self._optimizer = self._optimizer, None
        if optimizer is not None:
            optimizer.shutdown()
            reports += self._reports(optimizer, local_step)
        return dataclasses.replace(self._ends.finish(local_step), reports=reports)

    def shutdown(self) -> None:
        """Leave the swarm and end both averager processes."""
        optimizer, self._optimizer = self._optimizer, None
        if optimizer is not None and optimizer.is_alive():
            if optimizer.scheduled_state is not None:
                optimizer.scheduled_state.cancel()  # or its shutdown waits for the round, as long as averaging_timeout
                optimizer.scheduled_state = None
            optimizer.shutdown()
        self._ends.shutdown()
        stop_dht(self.dht)
        self._ports.release()

    def _reports(self, optimizer: _ObservedOptimizer, local_step: int) -> list[RoundReport]:
        observed = optimizer.state_averager.observed
        reports: list[RoundReport] = []
        while not observed.empty():
            reports.append(self._report(observed.get(), local_step, blocked_s=optimizer.blocked_s))
        return reports

    def _report(self, observed: _Observed, local_step: int, *, blocked_s: float) -> RoundReport:
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
            blocked_s=blocked_s,
            bytes_sent=observed.bytes_sent,
            moved=0.0,
        )
