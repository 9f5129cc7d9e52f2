"""The values of one round: its result, and how it ends early."""

from __future__ import annotations

from dataclasses import dataclass

from ray_gossip.records import Outcome

FINAL_ROUND = 2**40  # rounds from here on are final ones: everybody in one group


@dataclass(frozen=True, kw_only=True)
class RoundResult:
    """What the averager process says about a round. The delta, if any, is in shared memory."""

    outcome: Outcome
    cause: str
    group: tuple[int, ...]  # peer indices
    matchmaking_s: float
    allreduce_s: float
    bytes_sent: int
    moved: float
    sketch_before: tuple[float, ...]
    sketch_after: tuple[float, ...]
    swarm_round: int  # the latest round that any member has begun
    stretch: int  # consensus control: the next round is the next multiple of this
    members: tuple[int, ...]  # peer indices of all who counted in this round and to whom samples are dealt


class NoRound(Exception):
    """This round has ended without averaging, for this outcome and cause."""

    def __init__(self, outcome: Outcome, cause: str) -> None:
        super().__init__(cause)
        self.outcome, self.cause = outcome, cause


class RoundSoFar:
    """What has become of one round so far."""

    def __init__(self, peer_index: int) -> None:
        self.group = {peer_index}
        self.notes: list[str] = []  # who was missing, although the round went on
        self.matchmaking_s = self.allreduce_s = 0.0
