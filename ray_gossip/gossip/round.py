"""The values of one round: its result, and how it ends early."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

from ray_gossip.causes import RESTARTS
from ray_gossip.gossip.members import Roster
from ray_gossip.records import Outcome, RoundReport


class Stage(NamedTuple):
    """One all-reduce of a swarm: most rounds have one, exact rounds several. Later ones are greater."""

    is_final: bool  # final rounds, of everybody in one group, come after all others
    round: int  # final ones count from 0 again
    position: int = 0  # in its round


@dataclass(frozen=True, kw_only=True)
class RoundResult:
    """What the sidecar says about a round. The delta, if any, is in shared memory."""

    round: int  # in which this peer took part: a later one than it began, if that was over
    outcome: Outcome
    cause: str
    group: tuple[int, ...]  # peer indices
    matchmaking_s: float
    allreduce_s: float
    bytes_sent: int
    moved: float
    sketch_before: tuple[float, ...]
    sketch_after: tuple[float, ...]
    stretch: int  # consensus control: how many intervals to let pass until the next round
    is_early: bool  # it was alone by schedule in a round to which it had moved on before the others
    is_hermit: bool  # it sees nobody where several were
    roster: Roster  # of this round, this peer included
    is_diverged: bool = False  # this peer's parameters, before it, are not finite
    silent: tuple[str, ...] = ()  # names of those whose declaration has expired lately, without a goodbye
    kept_in: int = 0  # which half of `Memory.kept` holds what counts in later rounds, if this one is applied

    @classmethod
    def interrupted(cls, round: int, cause: str, *, roster: Roster) -> RoundResult:
        """Of a round whose end nobody can tell, because the network side has died: as if it had failed."""
        return cls(
            round=round,
            outcome="failed",
            cause=f"{RESTARTS}: {cause}",
            group=(),
            matchmaking_s=0.0,
            allreduce_s=0.0,
            bytes_sent=0,
            moved=0.0,
            sketch_before=(),
            sketch_after=(),
            stretch=1,
            is_early=False,
            is_hermit=False,
            roster=roster,
        )

    def report(self, *, peer_index: int, began_at: int, ended_at: int, blocked_s: float) -> RoundReport:
        """What the training process tells of it.

        Args:
            began_at, ended_at: its local steps.
            blocked_s: how long local steps stood still for it.
        """
        return RoundReport(
            peer_index=peer_index,
            wall_time=time.time(),
            round=self.round,
            outcome=self.outcome,
            cause=self.cause,
            group=self.group,
            local_step=began_at,
            staleness_steps=ended_at - began_at,
            matchmaking_s=self.matchmaking_s,
            allreduce_s=self.allreduce_s,
            blocked_s=blocked_s,
            bytes_sent=self.bytes_sent,
            moved=self.moved,
            sketch_before=self.sketch_before,
            sketch_after=self.sketch_after,
        )


class NoRound(Exception):
    """This round has ended without averaging, for this outcome and cause."""

    def __init__(self, outcome: Outcome, cause: str) -> None:
        super().__init__(cause)
        self.outcome, self.cause = outcome, cause


class Behind(Exception):
    """This round is over, or its group has gone on; the swarm is at a later one."""

    def __init__(self, round: int) -> None:
        super().__init__(f"the swarm is about to begin round {round}")
        self.round = round


class RoundSoFar:
    """What has become of one round so far.

    Args:
        wait_s: how long this peer waits for groupmates that are late.
    """

    def __init__(self, peer_index: int, *, round: int, wait_s: float, is_final: bool = False) -> None:
        self.round, self.wait_s, self.is_final = round, wait_s, is_final
        self.due_in_s = 0.0  # until then it calls nobody to the round to which it has moved on
        self.is_lone = False  # by schedule
        self.group = {peer_index}
        self.notes: list[str] = []  # groupmates that were missing, although the round went on
        self.matchmaking_s = self.allreduce_s = 0.0

    def move_on(self, round: int, *, interval_s: float) -> None:
        """This round is over: wait for the others at a later one, and call them to it when they leave it out. After a
        whole interval: one that finds every round over, because the others do not see it, would drive them on."""
        self.round, self.due_in_s = round, interval_s

    @property
    def is_early(self) -> bool:
        """It has moved on to this round before the others, and waits for nobody when it is alone by schedule."""
        return self.due_in_s > 0 and self.is_lone
