"""How a run got over the faults that happened to it on purpose. Pure: folded from its records."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from ray_gossip.causes import SCHEDULED_ALONE
from ray_gossip.records import (
    RESTARTED,
    Fault,
    Notice,
    Outcome,
    PeerFinished,
    PeerLeft,
    PeerLost,
    PeerStarted,
    Progress,
    Record,
    RoundReport,
    RunResumed,
)

_FELLING = ("kill", "stop")
_UNNOTICED_S = 5.0  # a network side that is killed is missed within 2 s


@dataclass(kw_only=True)
class Recovered:
    """What became of one fault."""

    fault: Fault
    noticed_at: float | None = None  # seconds since 1970, as all moments here
    back_at: float | None = None  # when the peer took part again, or had its network side back
    samples_lost: float = 0.0  # that the peer would have seen meanwhile
    disturbed: Counter[int] = field(default_factory=Counter)  # rounds of other peers that did not average because of it

    @property
    def is_felled(self) -> bool:
        return self.fault.kind in _FELLING

    @property
    def noticed_s(self) -> float | None:
        return None if self.noticed_at is None else self.noticed_at - self.fault.wall_time

    @property
    def back_s(self) -> float | None:
        return None if self.back_at is None else self.back_at - self.fault.wall_time


class _Mark(NamedTuple):
    """How far a peer was."""

    at: float
    samples: int


class Recovery:
    """Give it every record, in the order of arrival."""

    def __init__(self) -> None:
        self.faults: list[Recovered] = []
        self._marks: defaultdict[int, list[_Mark]] = defaultdict(list)  # by peer
        self._rounds: defaultdict[int, dict[int, Outcome]] = defaultdict(dict)  # by round and peer
        self._done: set[int] = set()
        self._latest = -math.inf  # wall time

    def see(self, record: Record) -> None:
        self._latest = max(self._latest, record.wall_time)
        match record:
            case Fault():
                self.faults.append(Recovered(fault=record))
            case Progress():
                self._marks[record.peer_index].append(_Mark(record.wall_time, record.samples))
            case RoundReport() if SCHEDULED_ALONE not in record.cause:
                self._rounds[record.round][record.peer_index] = record.outcome
                for each in self.faults:
                    _look_at(each, record)
            case PeerFinished():
                self._done.add(record.peer_index)
            case PeerLeft() if not record.is_replaced:  # a guest: it owes nothing
                self._done.add(record.peer_index)
            case PeerLost():
                for each in self._open(record.peer_index, is_felled=True):
                    each.noticed_at = each.noticed_at or record.wall_time
            case RunResumed():  # what was before was told when it ended
                self.faults.clear()
                self._marks.clear()
                self._rounds.clear()
                self._done.clear()
            case PeerStarted():
                for each in self._open(record.peer_index):
                    each.back_at = record.wall_time
            case Notice() if RESTARTED in record.text:
                for each in self._open(record.peer_index, is_felled=False):
                    took_s = float(record.text.rpartition(RESTARTED)[2].split()[0])
                    each.noticed_at = max(each.fault.wall_time, record.wall_time - took_s)
                    each.back_at = record.wall_time

    @property
    def is_whole(self) -> bool:
        """What was hit is back, all of it."""
        return all(each.back_at is not None for each in self.faults)

    def report(self) -> dict[str, Any]:
        """For `summary.json`. Shares are of 1; what never happened is None."""
        self._count_samples()
        shares = [
            sum(outcome == "averaged" for outcome in outcomes.values()) / len(outcomes)
            for outcomes in self._rounds.values()
        ]
        kinds = sorted({each.fault.kind for each in self.faults})
        return {
            **_figures(self.faults),
            "most_disturbed": max((len(each.disturbed) for each in self.faults), default=0),
            "most_rounds_lost": max((each.disturbed.total() for each in self.faults), default=0),
            "throughput": self._throughput(),
            "participation": statistics.fmean(shares) if shares else None,
            "by_kind": {kind: _figures([each for each in self.faults if each.fault.kind == kind]) for kind in kinds},
        }

    def _open(self, peer_index: int, *, is_felled: bool | None = None) -> list[Recovered]:
        return [
            each
            for each in self.faults
            if each.fault.peer_index == peer_index
            and each.back_at is None
            and (is_felled is None or each.is_felled == is_felled)
        ]

    def _count_samples(self) -> None:
        """What each fault has cost its own peer; of several that overlap, the first has cost it."""
        counted: dict[int, float] = {}  # by peer, until when
        for each in self.faults:
            index = each.fault.peer_index
            marks = self._until_now(index) if each.back_at is None else self._marks[index]
            begin, end = each.fault.wall_time, each.back_at or math.inf
            inside = [
                (first, second)
                for first, second in pairwise(marks)
                if second.at > begin and first.at < end and first.at >= counted.get(index, -math.inf)
            ]
            speed = self._speed(index)
            lost = sum(speed * (second.at - first.at) - (second.samples - first.samples) for first, second in inside)
            each.samples_lost = max(0.0, lost)
            if inside:
                counted[index] = inside[-1][1].at

    def _until_now(self, index: int) -> list[_Mark]:
        """Also of a peer that says no more, and is not done."""
        marks = self._marks[index]
        is_done = index in self._done or not marks
        return marks if is_done else [*marks, _Mark(self._latest, marks[-1].samples)]

    def _undisturbed(self, index: int) -> Iterator[tuple[float, int]]:
        """Seconds between two reports of a peer, and its samples, while nothing was wrong with it."""
        own = [each for each in self.faults if each.fault.peer_index == index]
        for first, second in pairwise(self._marks[index]):
            if not any(second.at > each.fault.wall_time and first.at < (each.back_at or math.inf) for each in own):
                yield second.at - first.at, second.samples - first.samples

    def _speed(self, index: int) -> float:
        """Samples a second of an undisturbed peer; as the others', where it was never undisturbed."""
        own = list(self._undisturbed(index)) or [each for other in self._marks for each in self._undisturbed(other)]
        seconds, samples = (sum(values) for values in zip(*own, strict=True)) if own else (0.0, 0)
        return samples / seconds if seconds > 0 else 0.0

    def _throughput(self) -> float | None:
        """Samples seen, against what the same peers would have seen at their undisturbed speeds."""
        marks = {index: self._until_now(index) for index, each in self._marks.items() if each}
        seen = sum(each[-1].samples - each[0].samples for each in marks.values())
        expected = sum(self._speed(index) * (each[-1].at - each[0].at) for index, each in marks.items())
        return seen / expected if expected else None


def _figures(faults: Sequence[Recovered]) -> dict[str, Any]:
    backs = sorted(each.back_s for each in faults if each.back_s is not None)
    mended = sorted(each.back_s - (each.noticed_s or 0.0) for each in faults if each.back_s is not None)
    return {
        "faults": len(faults),
        "back": len(backs),
        "noticed_median_s": _median([each.noticed_s for each in faults]),
        "back_median_s": _median(backs),
        "back_p90_s": _tail(backs),
        "mended_median_s": _median(mended),  # from when it was noticed, where it had to be
        "mended_p90_s": _tail(mended),
        "samples_lost": round(sum(each.samples_lost for each in faults)),
        "rounds_lost": sum(each.disturbed.total() for each in faults),
    }


def _look_at(each: Recovered, report: RoundReport) -> None:
    """What a round says of a fault: that one which lasts is over, or that it has disturbed others."""
    fault = each.fault
    if report.wall_time <= fault.wall_time or each.back_at is not None:
        return
    if fault.peer_index == report.peer_index:
        # so also one that found nothing to hit, because that was being started again already
        is_over = report.wall_time > fault.wall_time + (fault.for_s or _UNNOTICED_S)
        if is_over and report.outcome == "averaged" and not each.is_felled:
            each.back_at = report.wall_time
    elif report.outcome != "averaged" and f"peer-{fault.peer_index:02d}" in report.cause:
        each.disturbed[report.peer_index] += 1


def _tail(ordered: Sequence[float]) -> float | None:
    """The 90th percentile: the least that nine tenths are not above."""
    return ordered[math.ceil(0.9 * len(ordered)) - 1] if ordered else None


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
