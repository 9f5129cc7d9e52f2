"""Tells when a run is not what it looks like: one line for each kind of trouble, with the likely cause and the key to
turn. Pure: records in, notices out; the present troubles stand in the swarm's state, where table, curves and summary
find them. What is over stays there, marked as over. A kind is told once in a run.

| kind | symptom | when it is said, and why then |
| --- | --- | --- |
| rounds | a round that should have averaged ends alone, partial or failed | by `tally`: 5 rounds; 8 of a peer; most |
| hermit | a peer sees nobody while others train, or they do not see it | 3 rounds running: no bad luck does that |
| pace | a round begins more than 1.5 intervals after an averaged one | by `tally`; a call may cost a step or two |
| stall | local steps stand still for half of the time between averaged rounds | by `tally`; no healthy run's median |
| distance | before rounds it rises for 20, to the double and a new height | as many: a random walk gains but a half |
| far | `gossip.robust` holds back the same peer | in 5 of its last 10 rounds |
| apart | a peer began with another model | that peer says so itself |
| restored | a peer diverged and went on with a neighbour's model | the same |
| memory, disk, ... | a machine is about to run out of something: `scarcity` | each peer looks every 30 s |
| diverged | the saved model's parameters or its loss are no numbers | at the end |
| agreement | a final round that did not average, or in parts only | at the end |
| merged | the merged model is worse than the peers' mean by 0.03 | at the end; short runs came to 0.021 (docs/log.md) |

| kind | likely cause | key |
| --- | --- | --- |
| rounds | by the words of the round: `advice` | by the same |
| hermit | its node of the DHT was cut off or stands still, or its machine is overloaded | swarm.cpus_per_peer |
| pace | a round takes longer than the interval | gossip.steps or .seconds, gossip.compression |
| stall | the same; or local steps wait by config | the same, gossip.overlap |
| distance | steps too large or rounds too rare for what averaging takes away | optimizer.lr, gossip.* |
| far | a broken GPU, another build, a liar; or other data than the others' | gossip.robust |
| apart | random numbers without a seed | model.factory |
| restored | steps too large | optimizer.lr |
| diverged | steps too large | optimizer.lr |
| agreement | a peer was late, or lost its group; what lasts: `advice` | swarm.final_s; by the same |
| merged | the peers are too far apart, or BatchNorm's statistics are off | gossip.steps, train.recalibrate_samples |

The summary counts the rounds of the whole run; not over is what a final round ended for too, or most peers' last round.

Not counted: rounds that were scheduled alone, or whose groupmates had done their local steps or left; of a peer whose
groupmates are lost, or whose network side is started again, which is told anyway; of `gossip.group_size=1`; of one peer
alone.
"""

from __future__ import annotations

import math
import time
from collections import deque
from itertools import pairwise

from ray_gossip.causes import CUT_OFF, DIVERGED, EXPIRED, HAS_LEFT, IS_DONE, NO_OTHERS, RESTARTS, SCHEDULED_ALONE
from ray_gossip.config import GossipConfig
from ray_gossip.records import (
    BEGAN_APART,
    Notice,
    PeerLeft,
    PeerLost,
    PeerStarted,
    Record,
    RoundReport,
    Usage,
)
from ray_gossip.telemetry.advice import advice_on, forces, is_lasting, is_same_cause, longer
from ray_gossip.telemetry.ending import causes_of_the_end, verdicts
from ray_gossip.telemetry.outliers import Outliers
from ray_gossip.telemetry.scarcity import KINDS, scarce
from ray_gossip.telemetry.state import PeerState, SwarmRound, SwarmState, Trouble
from ray_gossip.telemetry.tally import IN_A_ROW, SOON, Tally, Total

TROUBLE = "trouble: "  # how a notice of it begins

_FEW = 3  # rounds
_LATE = 1.5  # intervals
_STALLED = 0.5  # of the time
_START_UP, _BLOCK, _BLOCKS, _GROWTH = 10, 5, 4, 2.0  # rounds, rounds, number, ratio of the last block to the first
_COMES_IN_S = 5.0  # so long one that comes into a running swarm may count from a round that is still ahead
_LATELY_S = 30.0  # so long a dead peer may count as a member: causes may be its death without naming it
_EXCUSED = (NO_OTHERS, CUT_OFF, EXPIRED, SCHEDULED_ALONE, IS_DONE, HAS_LEFT, RESTARTS)


class Watch:
    """Give it each record after `state` has folded it."""

    def __init__(self, state: SwarmState, gossip: GossipConfig) -> None:
        self._state, self._gossip = state, gossip
        self._tallies = {kind: Tally() for kind in ("rounds", "hermit", "pace", "stall")}
        self._before: dict[int, RoundReport] = {}  # the last round of each peer
        self._total, self._outliers = Total(), Outliers()
        self._lost_at = -math.inf
        self._distances: deque[float] = deque()  # of the swarm's last rounds, before them
        self._num_earlier, self._highest = 0, 0.0  # of the rounds before those: their number, the highest distance
        self._scarce: dict[int, dict[str, str]] = {}  # of each peer's machine
        self._notices: list[Notice] = []

    def see(self, record: Record) -> list[Notice]:
        """What a person should read because of this record; mostly nothing."""
        match record:
            case RoundReport() if self._gossip.group_size > 1:
                self._see_round(record)
            case SwarmRound():
                self._see_distance(record)
            case PeerStarted() | PeerLost() | PeerLeft():
                self._before.pop(record.peer_index, None)
                for tally in self._tallies.values():
                    tally.forget(record.peer_index)
                self._total.forget_last(record.peer_index)
                self._scarce.pop(record.peer_index, None)
                if isinstance(record, PeerLost):
                    self._lost_at = record.wall_time
            case Usage():
                self._see_usage(record)
            case Notice() if record.text.startswith(BEGAN_APART):
                text = "peers began with different models; those that differed took over the first one's: let the "
                text += "random numbers of model.factory come from torch, which is seeded"
                self._begins("apart", text, is_over=True)
            case Notice() if record.text.startswith(DIVERGED):
                text = "peers diverged, and went on with a neighbour's model: lower optimizer.lr"
                self._begins("restored", text, is_over=True)
        return self._take()

    def end(self, *, is_saved: bool = False) -> list[Notice]:
        """What is to be said of the end; the same however often it is asked.

        Args:
            is_saved: a model is, which may be of no use.
        """
        self._see_all_rounds()
        for verdict in verdicts(self._state, self._gossip, is_saved=is_saved):
            self._begins(verdict.kind, verdict.text, count=verdict.num_peers)
        return self._take()

    # ---- rounds ---------------------------------------------------------------------------------------------------

    def _see_round(self, report: RoundReport) -> None:
        before, self._before[report.peer_index] = self._before.get(report.peer_index), report
        self._count("hermit", report, self._is_hermit(report), in_a_row=_FEW)
        if self._gossip.robust != "none":
            self._is_now("far", self._outliers.see(report))
        is_spoilt = self._is_spoilt(report)
        self._count("rounds", report, is_spoilt, in_a_row=SOON if is_lasting(report.cause) else IN_A_ROW)
        if is_spoilt is not None:
            self._total.add(report, is_bad=is_spoilt)
        if before is not None:
            self._count("pace", report, self._is_late(report, before))
            self._count("stall", report, _is_stalled(report, before))

    def _count(self, kind: str, report: RoundReport, is_bad: bool | None, *, in_a_row: int = IN_A_ROW) -> None:
        if is_bad is None:
            return
        tally, known = self._tallies[kind], self._state.troubles.get(kind)
        was_sick = tally.is_sick
        tally.add(report, is_bad=is_bad, in_a_row=in_a_row)
        if tally.is_sick and not was_sick:
            bad = tally.bad
            self._begins(kind, self._text(kind, tally), first_round=bad[0].round, count=len(bad))
        elif known is not None:
            known.count += is_bad and tally.is_sick
            known.is_over = not tally.is_sick

    def _is_spoilt(self, report: RoundReport) -> bool | None:
        if report.outcome == "averaged":
            return False
        gone = [peer.peer_index for peer in self._state.peers.values() if peer.lost or peer.left]
        names_gone = any(f"peer-{index:02d}" in report.cause for index in gone)
        is_told = names_gone or ("peer-" not in report.cause and report.wall_time - self._lost_at < _LATELY_S)
        is_last = len(self._state.founders) > 1 and not self._others(report)
        is_excused = any(words in report.cause for words in _EXCUSED)
        return None if is_told or is_last or is_excused else True

    def _is_hermit(self, report: RoundReport) -> bool | None:
        if report.cause in (CUT_OFF, EXPIRED):
            return True
        if report.cause == NO_OTHERS:
            return True if self._others_train(report) else None
        return False

    def _is_late(self, report: RoundReport, before: RoundReport) -> bool | None:
        gossip = self._gossip
        if gossip.consensus_target is not None or before.outcome != "averaged":
            return None  # it lets rounds out on purpose; what is not averaged takes its time, and is told anyway
        if gossip.steps is not None:
            return report.local_step - before.local_step > _LATE * gossip.steps + 1
        return report.wall_time - before.wall_time > _LATE * (gossip.seconds or 0.0)

    def _others_train(self, report: RoundReport) -> bool:
        return any(
            peer.status == "training" and peer.started is not None and not _comes_in(peer.started, report)
            for peer in self._others(report)
        )

    def _others(self, report: RoundReport) -> list[PeerState]:
        return [peer for peer in self._state.live_peers() if peer.owes_reports and peer.peer_index != report.peer_index]

    def _text(self, kind: str, tally: Tally) -> str:
        last, gossip = tally.bad[-1], self._gossip
        if kind == "rounds":
            return f"{tally.subject} did not average: {advice_on(tally.bad, gossip)}"
        if kind == "hermit":
            cut_off = "its node of the DHT was cut off, stands still or is overloaded"
            if last.cause == CUT_OFF and not self._others_train(last):
                seen = f"where several were: either they are gone, or {cut_off}; in that case"
            else:
                seen = f"though others train: {cut_off};"
            return f"{tally.subject} met nobody, {seen} raise swarm.cpus_per_peer, or start that peer anew"
        takes = f"a round takes {last.matchmaking_s:.2g} s to meet and {last.allreduce_s:.2g} s to average"
        if kind == "pace":
            key = "gossip.steps" if gossip.steps is not None else "gossip.seconds"
            return (
                f"{tally.subject} began later than every {key}={gossip.steps or gossip.seconds:g}: {takes}; "
                f"{longer(gossip)}, or set gossip.compression=fp16"
            )
        overlap = "" if gossip.overlap else " or set gossip.overlap=true,"
        return f"{tally.subject} held up local steps for more than half of the time: {takes};{overlap} {longer(gossip)}"

    # ---- the machines ---------------------------------------------------------------------------------------------

    def _see_usage(self, usage: Usage) -> None:
        self._scarce[usage.peer_index] = scarce(usage)
        for kind in KINDS:
            self._is_now(kind, next((found[kind] for found in self._scarce.values() if kind in found), ""))

    # ---- the swarm ------------------------------------------------------------------------------------------------

    def _see_distance(self, round: SwarmRound) -> None:
        if round.num_peers < 2:
            return
        if len(self._distances) == _BLOCK * _BLOCKS:
            self._num_earlier += 1
            self._highest = max(self._highest, self._distances.popleft())
        self._distances.append(round.consensus_distance_before)
        if self._num_earlier < _START_UP:
            return
        known, values = self._state.troubles.get("distance"), list(self._distances)
        blocks = [math.fsum(values[i : i + _BLOCK]) / _BLOCK for i in range(0, len(values), _BLOCK)]
        rises = all(a < b for a, b in pairwise(blocks))
        if rises and blocks[-1] > max(_GROWTH * blocks[0], self._highest):
            if known is None or known.is_over:
                first = round.round - len(values) + 1
                text = (
                    f"the peers drift apart: the consensus distance rose from {blocks[0]:.3g} to {blocks[-1]:.3g} in "
                )
                text += f"{len(values)} rounds; lower {forces(self._gossip)}"
                self._begins("distance", text, first_round=first, count=len(values))
            else:
                known.count += 1
        elif known is not None and blocks[-1] <= blocks[-2]:
            known.is_over = True

    # ---- the end --------------------------------------------------------------------------------------------------

    def _see_all_rounds(self) -> None:
        """What is told when it begins counts the latest rounds only. A run of few may be over before any window is
        full."""
        total, known = self._total, self._state.troubles.get("rounds")
        if known is None and not (total.num_bad >= _FEW and total.is_mostly_bad):
            return
        bad = list(total.latest_bad)
        text = f"{total.text}: {advice_on(bad, self._gossip)}"
        if known is None:
            self._begins("rounds", text, first_round=total.first_bad, is_over=not total.ends_badly)
            known = self._state.troubles["rounds"]
        known.text, known.count = text, total.num_bad
        known.is_over &= not any(is_same_cause(cause, bad) for cause in causes_of_the_end(self._state))

    # ---- what is told ---------------------------------------------------------------------------------------------

    def _is_now(self, kind: str, text: str) -> None:
        """This trouble is there; without a text, it is not."""
        known = self._state.troubles.get(kind)
        if text and (known is None or known.is_over):
            self._begins(kind, text)
        elif known is not None:
            known.is_over = not text

    def _begins(
        self, kind: str, text: str, *, first_round: int | None = None, count: int = 1, is_over: bool = False
    ) -> None:
        known = self._state.troubles.get(kind)
        if known is not None:  # it is back, and was told: the table shows how things are now
            if known.is_over:
                known.count += count
            known.text, known.is_over = text, is_over
            return
        self._state.troubles[kind] = Trouble(
            kind=kind, text=text, first_round=first_round, count=count, is_over=is_over
        )
        self._notices.append(Notice(peer_index=-1, wall_time=time.time(), text=f"{TROUBLE}{text}"))

    def _take(self) -> list[Notice]:
        notices, self._notices = self._notices, []
        return notices


def _is_stalled(report: RoundReport, before: RoundReport) -> bool | None:
    if report.outcome != "averaged":
        return None
    return report.blocked_s > _STALLED * (report.wall_time - before.wall_time)


def _comes_in(started: PeerStarted, report: RoundReport) -> bool:
    return started.incarnation > 0 and report.wall_time - started.wall_time < _COMES_IN_S
