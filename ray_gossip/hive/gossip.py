"""The engine `gossip`, training side: when a round begins, the snapshot, and applying what came back.

One round is in flight at most (pipelined rounds with alpha = 1 do not contract). The training thread copies the
snapshot out and the delta in; everything between happens in the averager process.
"""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass

import hivemind
import torch
from hivemind.utils import MPFuture

from ray_gossip.config import Config
from ray_gossip.errors import SwarmError
from ray_gossip.hive.averager import FINAL_ROUND, GossipAverager, RoundResult
from ray_gossip.hive.engine import FinalResult, TrainingState
from ray_gossip.hive.membership import View
from ray_gossip.records import RoundReport

_FINAL_ATTEMPTS = 3
_LAG = 3  # a peer this many rounds behind the swarm skips ahead; less is caught up by groupmates that wait
_POLL_S = 0.2  # how often a founder looks whether all the others are there
_GRACE_S = 10.0  # beyond all deadlines of a round: then the averager process is hung


@dataclass
class _Pending:
    """The round in flight."""

    round: int
    local_step: int
    result: MPFuture[RoundResult]
    blocked_s: float


class GossipEngine:
    """Our own round loop on `GossipAverager`.

    Build it on the main thread and before any CUDA call: it forks.
    """

    def __init__(self, config: Config, *, dht: hivemind.DHT, run_id: str, peer_index: int, state_size: int) -> None:
        self.gossip, self.swarm = config.gossip, config.swarm
        self.peer_index = peer_index
        self.snapshot = torch.zeros(state_size)
        self.averager = GossipAverager(
            self.snapshot,
            dht,
            run_id=run_id,
            gossip=config.gossip,
            final_s=config.swarm.final_s,
            seed=config.seed,
            peer_index=peer_index,
        )
        self.averager.run_in_background(await_ready=True, timeout=config.swarm.start_s)
        self._state: TrainingState | None = None
        self._pending: _Pending | None = None
        self._next_round = 0
        self._next_round_at = 0.0

    def attach(self, state: TrainingState) -> None:
        """Take the state that is to be averaged. On the main thread, after the model is on its device."""
        self._state = state
        state.read_state(self.snapshot)

    def join(self, *, founders: int) -> View:
        """Declare this peer and wait until all `founders` of the swarm are there, at most `swarm.start_s`."""
        deadline = time.monotonic() + self.swarm.start_s
        view: View = self.averager.declare(from_round=0).result(timeout=self.swarm.start_s)
        while len(view.members) < founders and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            view = self.averager.read_members().result(timeout=self.swarm.start_s)
        self._next_round_at = time.monotonic() + (self.gossip.seconds or 0.0)
        return view

    def after_step(self, local_step: int) -> list[RoundReport]:
        """Tell the engine that a local step is done. Returns the rounds that have ended; mostly none."""
        self.averager.heartbeat[0] = local_step
        reports = []
        if self._pending is not None and self._pending.result.done():
            reports.append(self._complete(local_step))
        if self._is_due(local_step):
            if self._pending is not None:
                reports.append(self._complete(local_step))
            self._begin(local_step)
            if not self.gossip.overlap:
                reports.append(self._complete(local_step))
        return reports

    def finish(self, local_step: int) -> FinalResult:
        """The final rounds: all peers in one group, alpha 1, until the swarm agrees or `swarm.final_s` is over."""
        reports = [self._complete(local_step)] if self._pending is not None else []
        assert self._state is not None
        for attempt in range(_FINAL_ATTEMPTS):
            self._state.read_state(self.snapshot)
            result = self._wait(self.averager.gossip_round(FINAL_ROUND + attempt, alpha=1.0))
            if result.outcome == "averaged":
                self._state.add_to_state(self.averager.delta)
            if result.outcome in ("averaged", "alone"):
                break
        return FinalResult(
            reports=reports,
            outcome=result.outcome,
            cause=result.cause,
            bytes_sent=result.bytes_sent,
            sketch=result.sketch_after,
        )

    def shutdown(self) -> None:
        """Announce the departure and end the averager process; what does not end in time is killed."""
        if self.averager.is_alive():
            with contextlib.suppress(FutureTimeoutError, TimeoutError):
                self.averager.leave().result(timeout=1.0)  # else others find out when the declaration expires
            self.averager.shutdown()
        self.averager.join(timeout=1.0)
        if self.averager.is_alive():
            self.averager.kill()

    def _is_due(self, local_step: int) -> bool:
        if self.gossip.group_size == 1:
            return False
        if self.gossip.steps is not None:
            return local_step % self.gossip.steps == 0
        return time.monotonic() >= self._next_round_at

    def _begin(self, local_step: int) -> None:
        started = time.monotonic()
        assert self._state is not None
        self._state.read_state(self.snapshot)
        future = self.averager.gossip_round(self._next_round, alpha=self.gossip.alpha)
        self._pending = _Pending(self._next_round, local_step, future, blocked_s=time.monotonic() - started)
        self._next_round_at = started + (self.gossip.seconds or 0.0)

    def _complete(self, local_step: int) -> RoundReport:
        """Wait for the round in flight and apply what it brought."""
        assert self._pending is not None
        assert self._state is not None
        pending, self._pending = self._pending, None
        started = time.monotonic()
        result = self._wait(pending.result)
        if result.outcome == "averaged":
            self._state.add_to_state(self.averager.delta)
        behind = result.swarm_round - pending.round
        self._next_round = result.swarm_round if behind > _LAG else pending.round + 1
        return RoundReport(
            peer_index=self.peer_index,
            wall_time=time.time(),
            round=pending.round,
            outcome=result.outcome,
            cause=result.cause,
            group=result.group,
            local_step=pending.local_step,
            staleness_steps=local_step - pending.local_step,
            matchmaking_s=result.matchmaking_s,
            allreduce_s=result.allreduce_s,
            blocked_s=pending.blocked_s + time.monotonic() - started,
            bytes_sent=result.bytes_sent,
            moved=result.moved,
            sketch_before=result.sketch_before,
            sketch_after=result.sketch_after,
        )

    def _wait(self, future: MPFuture[RoundResult]) -> RoundResult:
        deadline = (
            time.monotonic() + max(self.swarm.final_s, self.gossip.matchmaking_s) + self.gossip.allreduce_s + _GRACE_S
        )
        while True:
            try:
                return future.result(timeout=1.0)
            except (FutureTimeoutError, TimeoutError):
                if not self.averager.is_alive():
                    raise SwarmError("the averager process of this peer died") from None
                if time.monotonic() > deadline:
                    raise SwarmError("the averager process of this peer is hung") from None
