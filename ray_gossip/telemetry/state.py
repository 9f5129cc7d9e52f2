"""The current picture of a swarm, folded from its records. Pure: no files, no clock."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ray_gossip.causes import known_in
from ray_gossip.mixing import spread_of_sketches
from ray_gossip.records import (
    OUTCOMES,
    Evaluation,
    Fault,
    Notice,
    Outcome,
    PeerFinished,
    PeerLeft,
    PeerLost,
    PeerStarted,
    Progress,
    Record,
    Reported,
    RoundReport,
    RunResumed,
)

News = PeerStarted | PeerLost | PeerLeft | Fault | Notice
Status = Literal["starting", "training", "final", "finished", "left", "lost"]

# A peer that stops reporting rounds must not keep the sketches of all later ones in memory, 16 KB a report.
_MAX_OPEN_ROUNDS = 64


@dataclass(frozen=True, kw_only=True)
class SwarmRound(Record):
    """The driver's own record: one round as the swarm went through it. `peer_index` is -1."""

    round: int
    local_step: int  # at the snapshots, mean over these peers
    num_peers: int  # live peers that reported the round with a sketch
    consensus_distance_before: float  # over those peers' snapshots
    consensus_distance: float  # over what the round made of the snapshots
    contraction: float | None  # (after / before)^2, the factor of the squared spread; None when there was no spread


@dataclass(kw_only=True)
class Trouble:
    """A way in which a run is not what it looks like."""

    kind: str  # `watch` lists them
    text: str  # one line: what, the likely cause, the key to turn
    first_round: int | None  # None: not of rounds
    count: int  # in how many rounds, counted for each peer, it was seen
    is_over: bool


@dataclass(kw_only=True)
class PeerState:
    """The latest record of each kind from one peer, and what follows from them."""

    peer_index: int
    total_steps: int | None  # local steps that it is asked to do; None: a loop of the user's own knows
    started: PeerStarted | None = None
    progress: Progress | None = None
    first_progress: Progress | None = None
    evaluation: Evaluation | None = None  # of its own parameters
    merged: Evaluation | None = None  # of the merged model
    round: RoundReport | None = None
    finished: PeerFinished | None = None
    lost: PeerLost | None = None
    left: PeerLeft | None = None
    bytes_sent: int = 0  # since it started
    num_measured: int = 0  # times that its loop has reported, or its own parameters were evaluated
    measured_step: int = 0  # the local step of the latest of these
    reported: dict[str, float] = field(default_factory=dict)  # by its loop, the latest of each name

    @property
    def status(self) -> Status:
        if self.lost:
            return "lost"
        if self.left:
            return "left"
        if self.finished:
            return "finished"
        if self.total_steps is not None and self.local_step >= self.total_steps:
            return "final"
        return "training" if self.progress else "starting"

    def measure(self, record: Evaluation | Reported) -> None:
        self.measured_step = record.local_step
        self.num_measured += 1

    @property
    def is_live(self) -> bool:
        """It is up, though it may have finished."""
        return self.started is not None and self.lost is None and self.left is None

    @property
    def owes_reports(self) -> bool:
        """More is to come from it."""
        return self.is_live and self.finished is None

    @property
    def device(self) -> str:
        return self.started.device if self.started else ""

    @property
    def local_step(self) -> int:
        latest = self.progress or self.started
        return latest.local_step if latest else 0

    @property
    def loss(self) -> float | None:
        """In training, as of late."""
        return self.progress.loss if self.progress else None

    @property
    def accuracy(self) -> float | None:
        return self.evaluation.accuracy if self.evaluation else None

    @property
    def samples_per_s(self) -> float:
        """Its speed now; 0 when it does not train."""
        return self.progress.samples_per_s if self.progress and self.status == "training" else 0.0

    @property
    def measures(self) -> dict[str, float]:
        """What it was evaluated at, or its loop has reported, the latest of each name."""
        if self.evaluation is None:
            return self.reported
        accuracy = {} if self.evaluation.accuracy is None else {"accuracy": self.evaluation.accuracy}
        return {**accuracy, "loss": self.evaluation.loss, **self.evaluation.metrics, **self.reported}

    @property
    def groupmates(self) -> tuple[int, ...]:
        """The peers with which it averaged in its last round."""
        return tuple(index for index in self.round.group if index != self.peer_index) if self.round else ()


class SwarmState:
    """A swarm as its records tell it.

    What a lost peer did still counts in `rounds` and `bytes_sent`; its successor starts afresh.

    Args:
        peers: indices of those that are started; more may join later.
        total_steps: local steps of every peer; None: its own loop knows.
    """

    def __init__(self, *, peers: Iterable[int], total_steps: int | None) -> None:
        self.total_steps = total_steps
        self.peers = {index: self._new_peer(index) for index in peers}
        self.founders = frozenset(self.peers)
        self.rounds: dict[Outcome, int] = dict.fromkeys(OUTCOMES, 0)  # peer-rounds: a group of M counts M times
        self.causes: Counter[str] = Counter()  # in the words of `causes`, counted as `rounds` are
        self.bytes_sent = 0
        self.meetings: Counter[tuple[int, int]] = Counter()  # (peer, groupmate) -> rounds averaged together
        self.last_round: SwarmRound | None = None
        self.troubles: dict[str, Trouble] = {}  # by kind, in the order in which they began; `watch` writes them
        self.news: list[News] = []  # what a person should read, in order
        self.num_old_news = 0  # of which a person was told when the run was interrupted
        self.first_step_time: float | None = None  # seconds since 1970
        self._open_rounds: dict[int, dict[int, RoundReport]] = {}  # round -> peer_index -> report

    def fold(self, record: Record) -> list[SwarmRound]:
        """Take one record in; returns the rounds of the swarm that are complete because of it."""
        if isinstance(record, SwarmRound):  # one that was completed before, and written
            self.last_round = record
            return []
        if isinstance(record, RunResumed):
            self._resume(record.num_peers)
            return []
        if isinstance(record, News):
            self.news.append(record)
        if not isinstance(record, (Notice, Fault)):
            self._fold_peer(record, self.peers.setdefault(record.peer_index, self._new_peer(record.peer_index)))
        return self._complete_rounds(wall_time=record.wall_time)

    def _fold_peer(self, record: Record, peer: PeerState) -> None:
        match record:
            case PeerStarted():
                self.peers[peer.peer_index] = self._new_peer(peer.peer_index, started=record)
            case Progress():
                peer.progress = record
                peer.first_progress = peer.first_progress or record
                if record.local_step > 0:
                    self.first_step_time = min(record.wall_time, self.first_step_time or record.wall_time)
            case Evaluation(model="peer"):
                peer.evaluation = record
                peer.measure(record)
            case Evaluation(model="merged"):
                peer.merged = record
            case Reported():
                peer.reported |= record.metrics
                peer.measure(record)
            case RoundReport():
                peer.round = record
                self.rounds[record.outcome] += 1
                self.causes.update(known_in(record.cause) if record.cause else [])
                if record.outcome == "averaged":
                    self.meetings.update((record.peer_index, mate) for mate in peer.groupmates)
                self._count_bytes(peer, peer.bytes_sent + record.bytes_sent)
                if self.last_round is None or record.round > self.last_round.round:
                    self._open_rounds.setdefault(record.round, {})[record.peer_index] = record
            case PeerFinished():
                peer.finished = record
                self._count_bytes(peer, max(peer.bytes_sent, record.bytes_sent))
            case PeerLost() | PeerLeft():
                if isinstance(record, PeerLost):
                    peer.lost = record
                else:
                    peer.left = record
                for reports in self._open_rounds.values():
                    reports.pop(record.peer_index, None)

    def _resume(self, num_peers: int) -> None:
        """Peers start again; nothing is in progress. What they were evaluated at counts until they are again."""
        before, self.founders = self.peers, frozenset(range(num_peers))
        self.peers = {index: self._new_peer(index) for index in range(num_peers)}
        for index in before.keys() & self.peers.keys():
            self.peers[index].evaluation, self.peers[index].reported = before[index].evaluation, before[index].reported
        self.num_old_news = len(self.news)
        self.first_step_time = self.last_round = None
        self._open_rounds.clear()

    def present_troubles(self) -> list[Trouble]:
        return [trouble for trouble in self.troubles.values() if not trouble.is_over]

    def live_peers(self) -> list[PeerState]:
        return [peer for _, peer in sorted(self.peers.items()) if peer.is_live]

    @property
    def consensus_distance(self) -> float | None:
        """Over the parameters that the peers ended with, once all have; else after the last complete round."""
        if (final := self.final_consensus_distance) is not None:
            return final
        if len(self.peers) == 1 and any(end.final_outcome == "averaged" for end in self._ends() if end):
            return None  # the others report elsewhere
        return self.last_round.consensus_distance if self.last_round else None

    @property
    def final_consensus_distance(self) -> float | None:
        """Over the parameters that the peers ended with; None before all have, or when the others report elsewhere."""
        ends = self._ends()
        sketches = [end.sketch for end in ends if end and end.sketch]
        is_whole = len(sketches) == len(ends) and (len(sketches) > 1 or len(self.peers) > 1)
        return distance_of_sketches(sketches) if sketches and is_whole else None

    def _ends(self) -> list[PeerFinished | None]:
        """Of the peers that count at the end: the last word of a guest may come after the driver's own are done."""
        return [peer.finished for peer in self.live_peers() if peer.finished or peer.peer_index in self.founders]

    def _new_peer(self, index: int, *, started: PeerStarted | None = None) -> PeerState:
        return PeerState(peer_index=index, total_steps=self.total_steps, started=started)

    def _count_bytes(self, peer: PeerState, total: int) -> None:
        self.bytes_sent += total - peer.bytes_sent
        peer.bytes_sent = total

    def _complete_rounds(self, *, wall_time: float) -> list[SwarmRound]:
        """Rounds that all peers that owe reports have passed: they reported it, or skipped to a later one."""
        complete = []
        for number in sorted(self._open_rounds):
            awaited = any(p.round is None or p.round.round < number for p in self.peers.values() if p.owes_reports)
            if awaited and len(self._open_rounds) <= _MAX_OPEN_ROUNDS:
                break
            reports = [report for report in self._open_rounds.pop(number).values() if report.sketch_before]
            # one sketch is a distance only where there is one peer, and none that reports elsewhere
            is_lone = len(self.live_peers()) <= 1 and all(report.outcome == "alone" for report in reports)
            if len(reports) >= (1 if is_lone else 2):
                self.last_round = _swarm_round(reports, wall_time=wall_time)
                complete.append(self.last_round)
        return complete


def distance_of_sketches(sketches: Sequence[Sequence[float]]) -> float:
    """The consensus distance of the peers whose sketches these are [num_peers, sketch_size]."""
    with np.errstate(invalid="ignore", over="ignore"):  # a peer that diverged makes it nan, which is the truth
        return math.sqrt(spread_of_sketches(sketches))


def _swarm_round(reports: Sequence[RoundReport], *, wall_time: float) -> SwarmRound:
    before = distance_of_sketches([report.sketch_before for report in reports])
    # a round that was not averaged arrives where it began, and need not take a second sketch
    after = distance_of_sketches([report.sketch_after or report.sketch_before for report in reports])
    return SwarmRound(
        peer_index=-1,
        wall_time=wall_time,
        round=reports[0].round,
        local_step=round(sum(report.local_step for report in reports) / len(reports)),
        num_peers=len(reports),
        consensus_distance_before=before,
        consensus_distance=after,
        contraction=(after / before) ** 2 if before > 0 else None,
    )
