"""The engine `gossip`, training side: when a round begins, the snapshot, and applying what came back.

One round is in flight at most (pipelined rounds with alpha = 1 do not contract). The training thread copies the
snapshot out and the delta in; everything between happens in the sidecar.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, replace
from typing import Any

from ray_gossip.causes import NOT_FINITE
from ray_gossip.config import Config
from ray_gossip.errors import SwarmError
from ray_gossip.gossip.commands import Commands, Interrupted
from ray_gossip.gossip.entry import Entry
from ray_gossip.gossip.guard import Guard
from ray_gossip.gossip.leaving import Leaving
from ray_gossip.gossip.members import Roster, View
from ray_gossip.gossip.pace import Pace, Stopwatch, resumed
from ray_gossip.gossip.passing import Passing
from ray_gossip.gossip.patience import Patience
from ray_gossip.gossip.protocols import FinalResult, TrainingState
from ray_gossip.gossip.round import RoundResult
from ray_gossip.gossip.seat import Seat
from ray_gossip.gossip.snapshot import Snapshot
from ray_gossip.records import Record, RoundReport


@dataclass
class _Pending:
    """The round in flight."""

    round: int
    local_step: int
    result: Future[RoundResult]
    blocked_s: float  # how long local steps have stood still for it
    has_late_groupmates: bool = False  # it had not met when the next one was due


class GossipEngine:
    """Our own round loop, on a network side that runs in another process.

    Args:
        averager: the network side, which has its seat in the swarm.
        data: a digest of the swarm's samples, as this peer has them; empty: it has its own, and the swarm's are dealt
            to the others.
    """

    def __init__(
        self,
        config: Config,
        averager: Commands,
        seat: Seat,
        *,
        data: str = "",
    ) -> None:
        self.gossip, self.swarm, self.peer_index = config.gossip, config.swarm, seat.peer_index
        self.averager = averager
        self.pace = Pace(config.gossip, position=0.0)
        self.snapshot = Snapshot(averager.snapshot, usual_step_s=lambda: self.pace.usual_step_s)
        averager.hand_over_by(self.snapshot.hand_over)
        self.roster: Roster | None = None  # as two views in a row have it; None: not known
        self.notices = averager.notices
        self._charter = seat.charter
        self._latest = Roster()
        self._is_guest = self._has_looked = False
        self._passing = Passing(averager)
        self._pending: _Pending | None = None
        self._between_steps = Stopwatch()
        self._patience = Patience()
        self._snapshot_samples = 0
        self._leaving = Leaving(self.averager, self.snapshot, wait=self._wait, final_s=config.swarm.final_s)
        self._entry = entry = Entry(
            self.averager,
            self.snapshot,
            wait=self._wait,
            swarm=config.swarm,
            peer_index=seat.peer_index,
            data=data,
            notices=self.notices,
        )
        self._guard = Guard(entry.restore, most=config.train.max_restores, notices=self.notices)

    @property
    def members(self) -> tuple[int, ...] | None:
        """Those to which samples are dealt."""
        return None if self.roster is None else self.roster.takers

    def attach(self, state: TrainingState) -> None:
        """Take the state that is to be averaged, after the model is on its device."""
        self.snapshot.of(state)

    def join(self, *, founders: int, local_step: int = 0, has_taken_over: bool = False) -> View:
        """Enter a swarm that begins: wait until all `founders` are there, at most `swarm.start_s`.

        Args:
            local_step: at which all founders begin; above 0, they go on from a snapshot of one and the same peer. On a
                clock in steps, the rounds up to there count as done.
            has_taken_over: this peer begins with the model of one that is there: it need not compare its own.
        """
        view = self._entry.found(founders=founders, local_step=local_step, has_taken_over=has_taken_over)
        self._start(resumed(self.gossip, local_step), view)
        return view

    def join_running(self, *, has_model: bool = False) -> int:
        """Enter a swarm that runs: start from the state of one of its peers, count from a round that is still ahead.

        Args:
            has_model: this peer brings the swarm's model along, as it was a moment ago, and needs nobody else's.

        Returns:
            The local step at which the swarm is: this peer's count goes on from there, so that it is done with them.

        Raises:
            SwarmError: nobody answers, or nobody shares its state, within `swarm.start_s`.
        """
        entered = self._entry.join_running(has_model=has_model)
        self._is_guest = True
        pace = Pace(self.gossip, position=self._position(entered.local_step), round=entered.from_round)
        self._start(pace, entered.view)
        return entered.local_step

    def enter(self, *, founders: int) -> int:
        """Enter a swarm that runs, or is about to begin; start from its state either way.

        Returns:
            The local step at which the swarm is.

        Raises:
            SwarmError: as `join_running`.
        """
        local_step = self._entry.state_of_one_that_has_not_begun()
        if local_step is None:
            return self.join_running()
        self.join(founders=founders, local_step=local_step, has_taken_over=True)
        return local_step

    def after_step(self, local_step: int) -> list[RoundReport]:
        """Tell the engine that a local step is done. Returns the rounds that have ended; mostly none."""
        self.pace.took(self._between_steps.lap())
        self.averager.signals.stepped(self.pace.usual_step_s)
        self.averager.check()
        self.snapshot.share(local_step)
        reports = []
        if self._pending is not None and self._has_ended(self._pending, local_step):
            reports.append(self._complete(local_step))
        if self._pending is None and self._begins(local_step):
            self._begin(local_step)
            if not self.gossip.overlap:
                reports.append(self._complete(local_step))
        self._between_steps.lap()
        return reports

    def finish(self, local_step: int) -> FinalResult:
        """The final rounds: all peers in one group, until the swarm agrees or `swarm.final_s` is over."""
        reports = self.settle(local_step)
        self.snapshot.take(local_step)
        if self.gossip.group_size > 1 and not self.snapshot.values.isfinite().all():
            self._guard.restore(f"at local step {local_step}, its last, its parameters are {NOT_FINITE}")
        return replace(self._leaving.agree(local_step), reports=reports)

    def settle(self, local_step: int, *, within_s: float = math.inf) -> list[RoundReport]:
        """The end of the round in flight; none, if it takes longer or there is none."""
        if self._pending is None or (within_s < math.inf and not wait([self._pending.result], timeout=within_s).done):
            return []
        return [self._complete(local_step)]

    def restore(self, local_step: int, why: str) -> list[RoundReport]:
        """Go on with a neighbour's model, because this peer's training has diverged. Raises DivergedError."""
        before = self._guard.count
        reports = self.settle(local_step)
        if self._guard.count == before:
            self._guard.restore(why)
        return reports

    def say_goodbye(self) -> None:
        """Stay for a moment, for those with which this peer has just agreed."""
        self._leaving.say_goodbye()

    def tell_driver(self, records: Sequence[Record], *, wait_s: float = 0.0) -> None:
        """Pass on this peer's records, when it is a guest; wait at most so long until they have arrived."""
        if self._is_guest and self._charter.has_driver and records:
            self._passing.tell(records, wait_s=wait_s)

    def guest_records(self) -> list[Record]:
        """What guests have told this peer up to the last time that this was asked; waits for nothing."""
        return self._passing.take()

    def shutdown(self) -> None:
        """Announce the departure and end the network side."""
        self._leaving.shutdown()

    def _start(self, pace: Pace, view: View) -> None:
        """From here on this peer's pace counts."""
        self.pace, self._snapshot_samples = pace, self.snapshot.state.samples
        self.roster = self._latest = Roster.of(view.present)
        self._between_steps.lap()

    def _position(self, local_step: int) -> float:
        """Where this peer stands: local steps, or seconds."""
        return float(local_step) if self.pace.is_in_steps else time.monotonic()

    def _begins(self, local_step: int) -> bool:
        """A round is due for this peer, or for one that has called it."""
        if self.gossip.group_size == 1:
            return False
        return self.pace.is_due(self._position(local_step)) or self.averager.signals.called >= self.pace.round

    def _has_ended(self, pending: _Pending, local_step: int) -> bool:
        """Whether the round in flight has ended. When the next one is due before that, local steps wait for the
        all-reduce, so that H local steps stay H where the network is slow; never for groupmates that are late, and not
        for long: an all-reduce may hang."""
        if not self.pace.is_due(self._position(local_step)):
            return bool(pending.result.done())
        pending.has_late_groupmates |= not self.averager.signals.is_reducing
        while not (pending.result.done() or pending.has_late_groupmates) and pending.blocked_s < self._patience.seconds:
            started = time.monotonic()
            wait([pending.result], timeout=self._patience.seconds - pending.blocked_s)
            pending.blocked_s += time.monotonic() - started
        return bool(pending.result.done())

    def _begin(self, local_step: int) -> None:
        started = time.monotonic()
        self.snapshot.take(local_step)
        samples = self.snapshot.state.samples
        weight = float(max(1, samples - self._snapshot_samples)) if self.gossip.weight_by_samples else 1.0
        called = max(self.averager.signals.called, self.averager.first_round)
        round = self.pace.begin(self._position(local_step), called=called)
        future = self.averager.gossip_round(
            round, local_step=local_step, weight=weight, wait_s=self.pace.wait_s, interval_s=self.pace.interval_s
        )
        self._pending = _Pending(round, local_step, future, blocked_s=time.monotonic() - started)
        self._snapshot_samples = samples

    def _complete(self, local_step: int) -> RoundReport:
        """Wait for the round in flight and apply what it brought."""
        assert self._pending is not None
        pending, self._pending = self._pending, None
        started = time.monotonic()
        try:
            result: RoundResult = self._wait(pending.result)
        except Interrupted as died:
            result = RoundResult.interrupted(pending.round, str(died), roster=self._latest)
        if result.outcome == "averaged":
            self.snapshot.state.add_to_state(self.averager.delta)
        if result.is_diverged:
            self._guard.restore(f"at local step {pending.local_step} its parameters are {NOT_FINITE}")
        if result.allreduce_s:
            self._patience.took(result.allreduce_s)
            self._look_for_drift()
        position = self._position(local_step)
        self.pace.end(result.round, stretch=result.stretch, position=position, is_early=result.is_early)
        self._note_members(result)
        return result.report(
            peer_index=self.peer_index,
            began_at=pending.local_step,
            ended_at=local_step,
            blocked_s=pending.blocked_s + time.monotonic() - started,
        )

    def _look_for_drift(self) -> None:
        """After the first round: what is not averaged should have stayed as it was."""
        if not self._has_looked:
            self._has_looked = True
            if names := self.snapshot.state.drifting():
                self.notices.append(
                    f"training changes {', '.join(names)}, which is not averaged: each peer has its own, and the "
                    "merged model has the first one's; what is averaged: ray_gossip/training/averaged.py"
                )

    def _note_members(self, result: RoundResult) -> None:
        """The members that count, as soon as two views in a row say so: one may have been incomplete. A peer that sees
        nobody where several were has lost them, and leaves the samples as they were dealt."""
        if not result.is_hermit and self.roster is not None:
            views = zip(result.roster, self._latest, self.roster, strict=True)
            self.roster = Roster(*(now if now == before else known for now, before, known in views))
        self._latest = result.roster

    def _wait(self, future: Future[Any], *, within_s: float = math.inf) -> Any:
        """What the network side answers. Rounds and downloads may take long: it bounds these itself.

        Raises:
            SwarmError: it cannot go on, or has not answered in time.
        """
        deadline = time.monotonic() + within_s
        while True:
            try:
                return future.result(timeout=1.0)
            except (FutureTimeoutError, TimeoutError):
                self.averager.check()
                if time.monotonic() > deadline:
                    raise SwarmError(f"the network side of this peer has not answered for {within_s:g} s") from None
