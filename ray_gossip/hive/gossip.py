"""The engine `gossip`, training side: when a round begins, the snapshot, and applying what came back.

One round is in flight at most (pipelined rounds with alpha = 1 do not contract). The training thread copies the
snapshot out and the delta in; everything between happens in the averager process.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Any

import hivemind
import torch

from ray_gossip.causes import IS_DONE, OTHER_VIEW
from ray_gossip.config import Config
from ray_gossip.errors import ConfigError, SwarmError
from ray_gossip.gossip.charter import Charter
from ray_gossip.gossip.handover import Handover
from ray_gossip.gossip.members import Member, View, takers
from ray_gossip.gossip.pace import Pace, Stopwatch, resumed
from ray_gossip.gossip.protocols import FinalResult, StateShape, TrainingState
from ray_gossip.gossip.round import FINAL_ROUND, RoundResult
from ray_gossip.gossip.sharing import Sharing
from ray_gossip.gossip.signals import Pulse
from ray_gossip.hive.averager import GossipAverager
from ray_gossip.hive.calls import AVERAGER_DIED
from ray_gossip.hive.membership import REFRESH_S
from ray_gossip.hive.mixer import check_codec
from ray_gossip.hive.process import NetworkProcesses
from ray_gossip.records import BEGAN_APART, Record, RoundReport

_FINAL_ATTEMPTS, _FAILED_ATTEMPTS = 10, 3
_DISAGREE_S = 1.0  # before another final round, when one member counts a dead peer that another does not
_POLL_S = 0.2  # how often a founder looks whether all the others are there
_OBSERVE_S = 1.0  # how long a newcomer watches the pace of the swarm's rounds
_SHARE_S = 2.0  # a newcomer waits this long for the end of the donor's local step; else it gets the last snapshot
_LEAVE_S = 3.0  # to announce a departure
_GOODBYE_S = 5.0  # how long a peer that is done stays for others that are about to be
_READ_S = 2.0  # how long a final round waits to see who is there: its last view may be a whole interval old
_CHECK_S = 0.5  # how often a trainer looks after the processes that it needs
_HUNG_S = 30.0  # an averager process that has given no sign of life for so long is hung
_PATIENCE = 2.0  # local steps wait for an all-reduce at most this many times as long as one usually takes
_FIRST_PATIENCE_S = 5.0  # before the first one has ended


@dataclass
class _Pending:
    """The round in flight."""

    round: int
    local_step: int
    result: Future[RoundResult]
    blocked_s: float  # how long local steps have stood still for it
    has_late_groupmates: bool = False  # it had not met when the next one was due


def _is_worth_another(result: RoundResult, attempt: int) -> bool:
    """Whether a final round after this one may agree better: it failed, or met somebody that counted other members (a
    dead peer expires for one a moment earlier than for the other), or that is a final round ahead."""
    if result.outcome in ("failed", "partial"):
        return attempt + 1 < _FAILED_ATTEMPTS
    return OTHER_VIEW in result.cause or (result.outcome == "alone" and IS_DONE in result.cause)


class GossipEngine:
    """Our own round loop on `GossipAverager`.

    Build it on the main thread and before any CUDA call: it forks.

    Args:
        shape: of the state that is averaged.
        node: peers with the same node share a machine.
        data: a digest of the swarm's samples, as this peer has them; empty: it has its own, and the swarm's are dealt
            to the others.
    """

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
        check_codec(config.gossip.compression)
        self.gossip, self.swarm, self.peer_index = config.gossip, config.swarm, peer_index
        self.snapshot = torch.zeros(shape.size)
        self._shape, self._data, self._sharing = shape, data, Sharing()
        own = Member(
            peer_id=dht.peer_id.to_base58(),
            peer_index=peer_index,
            node=node,
            has_own_data=not data,
            data=data,
        )
        self.averager = GossipAverager(
            self.snapshot,
            dht,
            shape=shape,
            hand_over=self._hand_over,
            charter=charter,
            own=own,
            gossip=config.gossip,
            final_s=config.swarm.final_s,
            seed=config.seed,
        )
        self.averager.run_in_background(await_ready=True, timeout=config.swarm.start_s)
        self._network, self._pulse, self._checked_at = NetworkProcesses(dht), Pulse(), time.monotonic()
        self.members: tuple[int, ...] | None = None
        self.notices: list[str] = []  # for a person to read; whoever has passed them on takes them out
        self._charter = charter
        self._latest_members: tuple[int, ...] = ()
        self._is_guest = self._has_looked = False
        self._guest_records: Future[list[Record]] | None = None
        self._state: TrainingState | None = None
        self._pending: _Pending | None = None
        self.pace = Pace(config.gossip, position=0.0)
        self._between_steps = Stopwatch()
        self._recent_allreduce_s: deque[float] = deque(maxlen=16)
        self._snapshot_samples = self._snapshot_step = 0

    def attach(self, state: TrainingState) -> None:
        """Take the state that is to be averaged. On the main thread, after the model is on its device."""
        self._state = state
        self._take_snapshot(local_step=0)

    def join(self, *, founders: int, local_step: int = 0) -> View:
        """Enter a swarm that begins: wait until all `founders` are there, at most `swarm.start_s`.

        Args:
            local_step: at which all founders begin; above 0, they go on from a snapshot of one and the same peer. On a
                clock in steps, the rounds up to there count as done.
        """
        assert self._state is not None
        deadline = time.monotonic() + self.swarm.start_s
        self._take_snapshot(local_step)
        self.averager.allow_state_sharing = True
        began_as = self._state.digest()
        view: View = self._ask(self.averager.declare(from_round=0, is_founder=True, began_as=began_as))
        while len(view.members) < founders and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            view = self._ask(self.averager.read_members())
        if len(view.members) < founders:
            self.notices.append(
                f"{len(view.members)} of {founders} founders came within swarm.start_s={self.swarm.start_s:g} s: "
                "this peer begins without the others"
            )
        self._check_data(view)
        first = view.members[0]
        if first.began_as != began_as and first.peer_index != self.peer_index:
            self._load_state(deadline, donor=first.peer_id)
            self._ask(self.averager.start_anew())
            self.notices.append(
                f"{BEGAN_APART} {first.name}, and has taken over that one's: let the random "
                "numbers of your model come from torch, which is seeded"
            )
        self._start(resumed(self.gossip, local_step))
        self.members = self._latest_members = takers(view.present)
        return view

    def join_running(self) -> int:
        """Enter a swarm that runs: start from the state of one of its peers, count from a round that is still ahead.

        Returns:
            The local step at which the swarm is: this peer's count goes on from there, so that it is done with them.

        Raises:
            SwarmError: nobody answers, or nobody shares its state, within `swarm.start_s`.
        """
        assert self._state is not None
        deadline = time.monotonic() + self.swarm.start_s
        view: View = self._ask(self.averager.read_members())
        while view.latest_round < 0:
            if time.monotonic() > deadline:
                raise SwarmError("no running swarm was found: is the run id the same, and has it begun?")
            time.sleep(_POLL_S)
            view = self._ask(self.averager.read_members())
        self._check_data(view)
        started, first = time.monotonic(), view.latest_round
        local_step = self._load_state(deadline)
        self.averager.allow_state_sharing = True
        time.sleep(max(0.0, _OBSERVE_S - (time.monotonic() - started)))
        view = self._ask(self.averager.read_members())
        rounds_per_s = (view.latest_round - first) / (time.monotonic() - started)
        from_round = view.latest_round + 2 + math.ceil(2 * REFRESH_S * rounds_per_s)
        self._is_guest = True
        declared: View = self._ask(self.averager.declare(from_round, is_founder=False))
        self._start(Pace(self.gossip, position=self._position(local_step), round=from_round))
        self.members = self._latest_members = takers(declared.present)
        return local_step

    def enter(self, *, founders: int) -> int:
        """Enter a swarm that runs, or is about to begin; start from its state either way.

        Returns:
            The local step at which the swarm is.

        Raises:
            SwarmError: as `join_running`.
        """
        view: View = self._ask(self.averager.read_members())
        if view.latest_round >= 0:
            return self.join_running()
        local_step = self._load_state(time.monotonic() + self.swarm.start_s)
        self.join(founders=founders, local_step=local_step)
        return local_step

    def after_step(self, local_step: int) -> list[RoundReport]:
        """Tell the engine that a local step is done. Returns the rounds that have ended; mostly none."""
        self.pace.took(self._between_steps.lap())
        self.averager.signals.stepped(self.pace.usual_step_s)
        self.check_processes()
        if self._sharing.is_asked_for:
            self._sharing.answer(self._copy_of_state(local_step))
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
        reports = [self._complete(local_step)] if self._pending is not None else []
        assert self._state is not None
        bytes_sent, had_others, deadline = 0, False, time.monotonic() + self.swarm.final_s
        for attempt in range(_FINAL_ATTEMPTS):
            self._take_snapshot(local_step)
            with contextlib.suppress(FutureTimeoutError, TimeoutError):  # then the last view counts, as in any round
                self.averager.read_members().result(timeout=_READ_S)
            wait_s = max(_READ_S, deadline - time.monotonic())
            result: RoundResult = self._wait(
                self.averager.gossip_round(FINAL_ROUND + attempt, local_step=local_step, wait_s=wait_s)
            )
            bytes_sent += result.bytes_sent
            had_others |= result.num_members > 1 or result.is_hermit
            if result.outcome == "averaged":
                self._state.add_to_state(self.averager.delta)
            if not _is_worth_another(result, attempt) or time.monotonic() > deadline:
                break
            if OTHER_VIEW in result.cause:
                time.sleep(_DISAGREE_S)
        return FinalResult(
            reports=reports,
            outcome=result.outcome,
            cause=result.cause,
            agreed=result.outcome == "averaged" or not had_others,
            bytes_sent=bytes_sent,
            sketch=result.sketch_after,
        )

    def say_goodbye(self) -> None:
        """Announce the departure, then wait until the others have done so too, at most _GOODBYE_S: after a final round
        that all took part in, what is still on its way to them must not be cut off."""
        deadline = time.monotonic() + _GOODBYE_S
        with contextlib.suppress(FutureTimeoutError, TimeoutError, SwarmError):
            self.averager.leave().result(timeout=_GOODBYE_S)
            while time.monotonic() < deadline:
                view: View = self.averager.read_members().result(timeout=_GOODBYE_S)
                if not view.present:
                    return
                time.sleep(_POLL_S)

    def tell_driver(self, records: Sequence[Record], *, wait_s: float = 0.0) -> None:
        """Pass on this peer's records, when it is a guest; wait at most so long until they have arrived."""
        if self._is_guest and self._charter.has_driver and records:
            *_, last = [self.averager.tell_driver(record) for record in records]
            if wait_s and self.averager.is_alive():
                with contextlib.suppress(FutureTimeoutError, TimeoutError):
                    last.result(timeout=wait_s)

    def guest_records(self) -> list[Record]:
        """What guests have told this peer up to the last time that this was asked; waits for nothing."""
        records: list[Record] = []
        if self._guest_records is not None and self._guest_records.done():
            records, self._guest_records = self._guest_records.result(), None
        if self._guest_records is None:
            self._guest_records = self.averager.take_guest_records()
        return records

    def shutdown(self) -> None:
        """Announce the departure and end the averager process; what does not end in time is killed."""
        if self.averager.is_alive():
            with contextlib.suppress(FutureTimeoutError, TimeoutError, SwarmError):  # it may have died just now
                if not self._network.dead:
                    self.averager.leave().result(timeout=_LEAVE_S)  # else others see the declaration expire
            self.averager.shutdown()
        self.averager.join(timeout=1.0)
        if self.averager.is_alive():
            self.averager.kill()

    def _start(self, pace: Pace) -> None:
        """From here on this peer's pace counts."""
        assert self._state is not None
        self.pace = pace
        self._snapshot_samples = self._state.samples
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
        while not (pending.result.done() or pending.has_late_groupmates) and pending.blocked_s < self._patience_s:
            started = time.monotonic()
            with contextlib.suppress(FutureTimeoutError, TimeoutError):
                pending.result.result(timeout=self._patience_s - pending.blocked_s)
            pending.blocked_s += time.monotonic() - started
        return bool(pending.result.done())

    @property
    def _patience_s(self) -> float:
        """How long local steps wait for an all-reduce."""
        recent = self._recent_allreduce_s
        return _PATIENCE * statistics.median(recent) if recent else _FIRST_PATIENCE_S

    def _begin(self, local_step: int) -> None:
        started = time.monotonic()
        assert self._state is not None
        self._take_snapshot(local_step)
        samples = self._state.samples
        weight = float(max(1, samples - self._snapshot_samples)) if self.gossip.weight_by_samples else 1.0
        round = self.pace.begin(self._position(local_step), called=self.averager.signals.called)
        future = self.averager.gossip_round(
            round, local_step=local_step, weight=weight, wait_s=self.pace.wait_s, interval_s=self.pace.interval_s
        )
        self._pending = _Pending(round, local_step, future, blocked_s=time.monotonic() - started)
        self._snapshot_samples = samples

    def _complete(self, local_step: int) -> RoundReport:
        """Wait for the round in flight and apply what it brought."""
        assert self._pending is not None
        assert self._state is not None
        pending, self._pending = self._pending, None
        started = time.monotonic()
        result: RoundResult = self._wait(pending.result)
        if result.outcome == "averaged":
            self._state.add_to_state(self.averager.delta)
        if result.allreduce_s:
            self._recent_allreduce_s.append(result.allreduce_s)
            self._look_for_drift()
        position = self._position(local_step)
        self.pace.end(result.round, stretch=result.stretch, position=position, is_early=result.is_early)
        self._note_members(result)
        return RoundReport(
            peer_index=self.peer_index,
            wall_time=time.time(),
            round=result.round,
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

    def _look_for_drift(self) -> None:
        """After the first round: what is not averaged should have stayed as it was."""
        if not self._has_looked:
            self._has_looked = True
            assert self._state is not None
            if names := self._state.drifting():
                self.notices.append(
                    f"training changes {', '.join(names)}, which is not averaged: each peer has its own, and the "
                    "merged model has the first one's; what is averaged: ray_gossip/averaged.py"
                )

    def _note_members(self, result: RoundResult) -> None:
        """Who counts, as soon as two views in a row say so: one may have been incomplete. A peer that sees nobody where
        several were has lost them, and leaves the samples as they were dealt."""
        if result.members == self._latest_members and not result.is_hermit:
            self.members = result.members
        self._latest_members = result.members

    def _check_data(self, view: View) -> None:
        """Raise ConfigError when a peer numbers other samples than this one: their shards would overlap."""
        for member in view.present:
            if self._data and member.data and member.data != self._data:
                raise ConfigError(
                    f"data: {member.name} has other samples, or in another order: every peer must read the same"
                )

    def _take_snapshot(self, local_step: int) -> None:
        """Copy the state out, for a round and for newcomers that come while this peer takes no local steps."""
        assert self._state is not None
        with self._sharing.lock:
            self._state.read_state(self.snapshot)
            self._snapshot_step = local_step

    def _copy_of_state(self, local_step: int) -> Handover:
        assert self._state is not None
        fresh = torch.empty_like(self.snapshot)
        self._state.read_state(fresh)
        return Handover(local_step=local_step, state=fresh, rest=self._state.rest())

    def _hand_over(self) -> Handover:
        """This peer's model, for a newcomer: as it is after the present local step; when none ends soon, as it was at
        the last snapshot. In a thread of hivemind's."""
        assert self._state is not None
        fresh = self._sharing.ask(within_s=max(_SHARE_S, 2 * self.pace.usual_step_s))
        if fresh is not None:
            return fresh
        rest = self._state.rest()
        with self._sharing.lock:
            state = self.snapshot.clone()
            return Handover(local_step=self._snapshot_step, state=state, rest=rest, is_current=False)

    def _load_state(self, deadline: float, *, donor: str = "") -> int:
        """Download the model of a peer and take it over; returns the local step at which that peer is."""
        assert self._state is not None
        while True:
            handover: Handover | str = self._wait(self.averager.download(donor=donor))
            if isinstance(handover, Handover):
                self._state.take_rest(handover.rest)
                self._state.write_state(handover.state)
                self._take_snapshot(handover.local_step)
                return handover.local_step
            if time.monotonic() > deadline:
                raise SwarmError(
                    f"no peer gave its model within swarm.start_s={self.swarm.start_s:g} s; the last one: {handover}"
                )
            time.sleep(_POLL_S)

    def _ask(self, future: Future[Any]) -> Any:
        return future.result(timeout=self.swarm.start_s)

    def _wait(self, future: Future[Any]) -> Any:
        """What the averager process answers, however long that takes: it bounds what it does itself."""
        while True:
            try:
                return future.result(timeout=1.0)
            except (FutureTimeoutError, TimeoutError):
                self.check_processes()

    def check_processes(self) -> None:
        """Raise SwarmError when averager, DHT process or libp2p daemon cannot go on. Looks twice a second."""
        if time.monotonic() - self._checked_at < _CHECK_S:
            return
        self._checked_at = time.monotonic()
        if dead := self._network.dead:
            raise SwarmError(f"the {dead} of this peer died")
        if not self.averager.is_alive():
            raise SwarmError(AVERAGER_DIED)
        if self._pulse.feel(self.averager.signals.ticked_ns) > _HUNG_S:
            raise SwarmError(f"the averager process of this peer has been hung for {_HUNG_S:g} s")
