"""How often a symptom was seen in the latest rounds, and whether that is more than bad luck. Pure.

A swarm is sick when the symptom is in more than 0.8 of what its peers reported of their last 5 rounds, or in more than
0.5 of their last 20. With one unlucky round in five, the first happens to two peers, whose luck is one, once in 3,900
rounds, the second once in some thousand, and to larger swarms next to never. One peer of many is sick when the symptom
was in all of its last 8 rounds (5, where the cause is none that passes by itself): luck brings that once in 400,000.
A swarm is well again when the symptom is in at most 0.2 of the last 5, and no peer is sick.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from typing import NamedTuple

from ray_gossip.records import RoundReport

SOON, LATE = 5, 20  # rounds
IN_A_ROW = 8  # rounds of one peer
LEAST_S = 3.0  # of a window, however short the rounds: the driver knows within 2 s that a peer has died
_SICK_SOON, _SICK_LATE, _WELL = 0.8, 0.5, 0.2  # shares
_LATEST = 20  # rounds of which the commonest cause is told at the end


class _Seen(NamedTuple):
    report: RoundReport
    is_bad: bool


class Tally:
    """The latest rounds of each peer, with or without one symptom."""

    def __init__(self) -> None:
        self._of_peer: dict[int, deque[_Seen]] = {}
        self._began: float | None = None  # when the first round was reported
        self._sick_peers: set[int] = set()
        self._sick_for = 0  # rounds that show that the swarm is sick; 0: it is not

    def add(self, report: RoundReport, *, is_bad: bool, in_a_row: int = IN_A_ROW) -> None:
        """Take a round in, which has the symptom or not.

        Args:
            in_a_row: so many rounds with it are no bad luck.
        """
        now, peer = report.wall_time, report.peer_index
        self._began = now if self._began is None else self._began
        seen = self._of_peer.setdefault(peer, deque())
        seen.append(_Seen(report, is_bad))
        while len(seen) > LATE and now - seen[0].report.wall_time > LATE / SOON * LEAST_S:
            seen.popleft()
        if not is_bad:
            self._sick_peers.discard(peer)
        if now - self._began < LEAST_S:
            return
        if is_bad:
            sick_for = SOON if self._share(SOON) > _SICK_SOON else LATE if self._share(LATE) > _SICK_LATE else 0
            self._sick_for = self._sick_for or sick_for
            if len(seen) >= in_a_row and all(each.is_bad for each in _window(seen, in_a_row)):
                self._sick_peers.add(peer)
        elif self._sick_for and self._share(SOON) <= _WELL:
            self._sick_for = 0
            self._of_peer.clear()  # or what is over would count again

    def forget(self, peer_index: int) -> None:
        """The peer is gone, or new."""
        self._of_peer.pop(peer_index, None)
        self._sick_peers.discard(peer_index)

    @property
    def is_sick(self) -> bool:
        return self._sick_for > 0 or bool(self._sick_peers)

    @property
    def bad(self) -> list[RoundReport]:
        """The latest rounds with the symptom, in the order of time."""
        reports = [each.report for each in self._telling() if each.is_bad]
        return sorted(reports, key=lambda report: (report.wall_time, report.round))

    @property
    def subject(self) -> str:
        """Whose rounds have it, and how many of them."""
        seen = self._telling()
        num_bad = sum(each.is_bad for each in seen)
        return f"{num_bad} of the last {len(seen)} rounds of {peers_named({each.report.peer_index for each in seen})}"

    def _telling(self) -> list[_Seen]:
        """The latest rounds of those that are sick."""
        peers, rounds = (self._of_peer.keys(), self._sick_for) if self._sick_for else (self._sick_peers, IN_A_ROW)
        return [each for peer in peers for each in _window(self._of_peer[peer], rounds)]

    def _share(self, rounds: int) -> float:
        """Of the symptom in the last rounds of those that have reported so many; they must be most of the swarm."""
        windows = [_window(seen, rounds) for seen in self._of_peer.values() if len(seen) >= rounds]
        if 2 * len(windows) <= len(self._of_peer):
            return 0.0 if rounds > SOON else 0.5
        return _mean(each.is_bad for window in windows for each in window)


class Total:
    """All rounds of a run that should have averaged, counted for each peer."""

    def __init__(self) -> None:
        self._of_peer: Counter[int] = Counter()
        self._bad_of_peer: Counter[int] = Counter()
        self._ends_badly: dict[int, bool] = {}  # whether the last of each peer that is there did not average
        self.first_bad = -1  # number of the first round that did not average
        self.latest_bad = deque[RoundReport](maxlen=_LATEST)

    def add(self, report: RoundReport, *, is_bad: bool) -> None:
        self._of_peer[report.peer_index] += 1
        self._ends_badly[report.peer_index] = is_bad
        if is_bad:
            self.first_bad = self.first_bad if self._bad_of_peer else report.round
            self._bad_of_peer[report.peer_index] += 1
            self.latest_bad.append(report)

    def forget_last(self, peer_index: int) -> None:
        """The peer is gone, or new. What it did still counts."""
        self._ends_badly.pop(peer_index, None)

    @property
    def num_bad(self) -> int:
        return self._bad_of_peer.total()

    @property
    def is_mostly_bad(self) -> bool:
        return 2 * self.num_bad > self._of_peer.total()

    @property
    def ends_badly(self) -> bool:
        """Most peers' last round did not average."""
        return 2 * sum(self._ends_badly.values()) > len(self._ends_badly)

    @property
    def text(self) -> str:
        """How many did not average, and whose these are where it is not everybody."""
        sick = [peer for peer, num_bad in self._bad_of_peer.items() if 2 * num_bad > self._of_peer[peer]]
        is_theirs = len(sick) < len(self._of_peer) and 2 * sum(self._bad_of_peer[peer] for peer in sick) > self.num_bad
        whose = f", most of them of {peers_named(sick)}" if is_theirs else ""
        return f"{self.num_bad} of the {self._of_peer.total()} rounds that should have averaged did not{whose}"


def _window(seen: deque[_Seen], rounds: int) -> list[_Seen]:
    """The last so many rounds; those of the last seconds, where these are more."""
    shortest_s = rounds / SOON * LEAST_S if rounds > IN_A_ROW else LEAST_S
    since = seen[-1].report.wall_time - shortest_s
    return [each for i, each in enumerate(seen) if i >= len(seen) - rounds or each.report.wall_time > since]


def _mean(values: Iterable[bool]) -> float:
    known = list(values)
    return sum(known) / len(known)


def peers_named(indices: Iterable[int]) -> str:
    """Of a few peers their indices, else how many there are."""
    named = sorted(indices)
    if len(named) > 4:
        return f"{len(named)} peers"
    return f"peer{'s' if len(named) > 1 else ''} {', '.join(map(str, named))}"
