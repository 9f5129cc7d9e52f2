"""The rounds of one peer, from the members of the swarm to what its parameters change by. In its sidecar."""

from __future__ import annotations

import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ray_gossip.causes import CUT_OFF, EXPIRED, HAS_LEFT, NO_OTHERS, NOT_FINITE, SCHEDULED_ALONE, TOO_FEW
from ray_gossip.config import GossipConfig
from ray_gossip.config.gossip import OUTVOTED
from ray_gossip.gossip.consensus import summary
from ray_gossip.gossip.meeting import Arrival, Gathering, causes_of, settle
from ray_gossip.gossip.members import Member, Roster, View
from ray_gossip.gossip.round import Behind, NoRound, RoundResult, RoundSoFar, Stage
from ray_gossip.gossip.signals import Signals
from ray_gossip.hive.group_mean import GroupMean
from ray_gossip.hive.membership import Membership
from ray_gossip.hive.mixer import Mixer
from ray_gossip.hive.rendezvous import NoMeeting, Rendezvous
from ray_gossip.mixing import Sketch
from ray_gossip.mixing.schedule import group_of, radices
from ray_gossip.records import Outcome

_MOVES = 3  # a peer that finds its round over moves on to a later one at most so often


class Change(NamedTuple):
    """What a round adds to the parameters."""

    values: NDArray[np.float32]  # [size]
    sketch: NDArray[np.float64]


class Rounds:
    """What is needed for them, and the rounds, one at a time.

    Args:
        snapshot: float32 [size], the state before a round.
        delta: float32 [size], where what a round adds is left.
        num_parameters: the first so many elements are parameters.
        match: hivemind's own matchmaking, for `gossip.schedule=hivemind`.
    """

    def __init__(
        self,
        gossip: GossipConfig,
        *,
        snapshot: torch.Tensor,
        delta: torch.Tensor,
        num_parameters: int,
        seed: int,
        signals: Signals,
        membership: Membership,
        rendezvous: Rendezvous,
        mixer: Mixer,
        group_mean: GroupMean,
        match: Callable[[Stage, str], Awaitable[Gathering]],
    ) -> None:
        self._gossip, self._seed, self._num_parameters = gossip, seed, num_parameters
        self._snapshot, self._delta, self._signals = snapshot, delta, signals
        self._membership, self._rendezvous, self._mixer = membership, rendezvous, mixer
        self._group_mean, self._match = group_mean, match
        self._num_pieces = min(gossip.fragments, len(snapshot))
        self._sketch = self._parameter_sketch = Sketch(snapshot.numel())
        if num_parameters < snapshot.numel() and gossip.consensus_target is not None:
            self._parameter_sketch = Sketch(num_parameters)

    async def run(
        self, round: int, *, local_step: int, weight: float, wait_s: float, interval_s: float, is_final: bool
    ) -> RoundResult:
        """One round; see `GossipAverager.gossip_round`."""
        self._group_mean.traffic.begin_round()
        snapshot = self._snapshot
        before = self._sketch(snapshot.numpy())
        declared = b""
        if self._gossip.consensus_target is not None:  # of parameters: statistics may be of any size
            parameters = snapshot[: self._num_parameters].numpy()
            declared = summary(parameters, self._parameter_sketch(parameters))
        run = RoundSoFar(self._membership.own.peer_index, round=round, wait_s=wait_s, is_final=is_final)
        outcome: Outcome = "averaged"
        change: Change | None = None
        try:
            for moves in itertools.count():
                try:
                    view = await self._view(run, local_step, declared)
                    change = await self._change(view, snapshot, before, weight, run)
                    break
                except Behind as behind:
                    if moves == _MOVES or behind.round > self._membership.furthest:
                        raise NoRound("alone", str(behind)) from None
                    run.move_on(behind.round, interval_s=interval_s)
        except NoRound as ended:
            outcome = ended.outcome
            run.notes.insert(0, ended.cause)
        finally:
            self._signals.reduce(begins=False)
            self._group_mean.expect(False)
        if not run.is_final:
            self._membership.control_consensus()
        moved, after = 0.0, before
        if change is not None:
            self._delta.numpy()[:] = change.values
            moved, after = float(np.linalg.norm(change.values)), before + change.sketch
        members = view.at(run.round, is_final=is_final)
        return RoundResult(
            round=run.round,
            outcome=outcome,
            cause="; ".join(run.notes),
            group=tuple(sorted(run.group)),
            matchmaking_s=run.matchmaking_s,
            allreduce_s=run.allreduce_s,
            bytes_sent=self._group_mean.traffic.take(with_late=run.allreduce_s > 0),
            moved=moved,
            sketch_before=tuple(before.tolist()),
            sketch_after=tuple(after.tolist()),
            stretch=self._membership.stretch,
            is_early=run.is_early,
            is_hermit=self._membership.is_hermit,
            is_diverged=not np.isfinite(before).all(),
            roster=Roster.of(members),
            silent=self._membership.silent,
        )

    async def _view(self, run: RoundSoFar, local_step: int, summary: bytes) -> View:
        """The members that count in this round; a peer that the swarm has left behind by rounds catches up first."""
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
        members = view.at(run.round, is_final=run.is_final)
        if self._membership.own.left:  # as this round began
            raise NoRound("alone", f"this peer {HAS_LEFT}")
        names = {member.peer_id: member.name for member in members}
        is_exact = run.is_final or self._is_exact(run.round)
        excuse = "" if is_exact else self._mixer.refusal(snapshot)
        if not np.isfinite(sketch).all():
            excuse = f"its parameters are {NOT_FINITE}"
        begin, end = (0, len(snapshot)) if is_exact else self._piece(run.round)
        own = state = snapshot[begin:end]
        total = None
        for index, (schedule, turn) in enumerate(self._schedules(run, len(members))):
            started = time.monotonic()
            self._group_mean.expect(True)
            try:
                stage = Stage(run.is_final, run.round, index)
                gathering = await self._meet(stage, members, schedule, turn, excuse, run)
            finally:
                run.matchmaking_s += time.monotonic() - started
            if self._gossip.robust != "none" and len(gathering.present) < OUTVOTED:
                left = "".join(f"; {cause}" for cause in causes_of(gathering.absent, names))
                raise NoRound("alone", f"a group of {len(gathering.present)} is {TOO_FEW}={self._gossip.robust}{left}")
            run.group |= {member.peer_index for member in members if member.peer_id in gathering.present}
            run.notes += causes_of(gathering.absent, names)
            started = time.monotonic()
            self._signals.reduce(begins=True)
            try:
                # of several all-reduces each but the first would need the weights of whole groups
                difference = await self._group_mean.difference(
                    gathering, state, 1.0 if is_exact else weight, names, exact=is_exact, begin=begin
                )
            finally:
                run.allreduce_s += time.monotonic() - started
            run.notes += difference.notes
            if not is_exact:  # one stage
                total = difference.values
                continue
            total = difference.values.clone() if total is None else total + difference.values
            state = own + total
        assert total is not None
        alpha = 1.0 if is_exact else self._gossip.alpha
        values = self._mixer.change(own, total, alpha=alpha, plain=is_exact, begin=begin)
        if len(values) < len(snapshot):
            values = np.concatenate([np.zeros(begin, np.float32), values, np.zeros(len(snapshot) - end, np.float32)])
        change = Change(values, self._sketch(values))
        if not np.isfinite(change.sketch).all():
            raise NoRound("failed", f"the group's mean is {NOT_FINITE}")
        if is_exact:
            self._mixer.set_anchor(state)
        return change

    def _piece(self, round: int) -> tuple[int, int]:
        """Where what a round averages begins and ends."""
        size, at = len(self._snapshot), round % self._num_pieces
        return at * size // self._num_pieces, (at + 1) * size // self._num_pieces

    def _is_exact(self, round: int) -> bool:
        return self._gossip.exact_every > 0 and (round + 1) % self._gossip.exact_every == 0

    def _schedules(self, run: RoundSoFar, num_members: int) -> list[tuple[str, int]]:
        """The schedule of each stage, and the round number that it is asked for."""
        if run.is_final:
            return [("all", run.round)]
        if self._is_exact(run.round):
            sides = radices(num_members, self._gossip.group_size)
            return [("grid", turn) for turn in range(len(sides))] if sides else [("all", run.round)]
        return [(self._gossip.schedule, run.round // self._num_pieces)]

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
        # An incomplete stage would weigh its members more than those of other groups: the mean would move.
        smallest = 2 if run.is_final else len(group) if self._is_exact(run.round) else self._gossip.min_group_size
        settle(gathering, stage, own=self._membership.own.peer_id, smallest=smallest, names=names)
        return gathering

    def _scheduled_group(self, members: Sequence[Member], schedule: str, turn: int) -> list[str]:
        """Peer ids of this stage's group, in the order in which they serve as its host."""
        position = [member.peer_id for member in members].index(self._membership.own.peer_id)
        chosen = group_of(
            position,
            schedule,
            round=turn,
            num_members=len(members),
            group_size=self._gossip.group_size,
            seed=self._seed,
            nodes=[member.node for member in members],
            cross_every=self._gossip.cross_every,
        )
        group = [members[i].peer_id for i in chosen]
        first = turn % len(group)  # so that no peer hosts every meeting
        return group[first:] + group[:first]
