"""The pace of a swarm: when a peer begins a round, which one, and how long it waits for its groupmates.

A round is *due* for a peer when it has made H local steps (or T seconds have passed) since it began its last one. A
peer to which a round is due *calls* its groupmates, and a peer that is called begins after its present local step,
however many it has made. So the fastest peers of a swarm set its pace, and everybody else is in phase with them: after
a stall, after joining, at whatever speed. Nobody's local steps wait for another peer's.

A peer that finds its round over, because it is slow or was stopped, moves on to the next one and waits there, calling
nobody, until one to which that round is due comes along.
"""

from __future__ import annotations

import statistics
import time
from collections import deque

from ray_gossip.config import GossipConfig

MAX_STRETCH = 8  # consensus control makes an interval at most this many times longer
MIN_WAIT_S = 1.0  # a call takes up to this long on busy cores, however short the interval
_SYNCHRONOUS_S = 5.0  # without overlap, nothing but this ends the wait for a groupmate that does not come
_STEPS_KEPT = 16  # of which the median is the usual duration of a local step


class Pace:
    """One peer's place in the swarm's pace.

    Args:
        position: where it is now: local steps, or seconds by any clock of its own.
        round: the first round that it may begin.
    """

    def __init__(self, gossip: GossipConfig, *, position: float, round: int = 0) -> None:
        self._gossip = gossip
        self._began = position  # when it began its last round, or entered the swarm
        self.round = round  # the next one
        self.stretch = 1  # consensus control: how many intervals there are between two rounds
        self._step_s: deque[float] = deque(maxlen=_STEPS_KEPT)

    @property
    def is_in_steps(self) -> bool:
        """Whether positions are local steps; else they are seconds."""
        return self._gossip.seconds is None

    def interval(self, round: int) -> float:
        """How far the position moves between the beginnings of two rounds, the second of which is this one.

        During warm-up the intervals grow linearly up to the configured one: early on, when gradients are large and
        peers drift apart fast, rounds are frequent.
        """
        gossip = self._gossip
        share = min(1.0, (round + 1) / (gossip.warmup_rounds + 1))
        if gossip.seconds is not None:
            return self.stretch * gossip.seconds * share
        return self.stretch * max(1, int((gossip.steps or 1) * share + 0.5))  # unlike `round`: halves go up, always

    def is_due(self, position: float) -> bool:
        """Whether the next round is due by this peer's own count."""
        return position - self._began >= self.interval(self.round)

    def begin(self, position: float, *, called: int) -> int:
        """Begin a round: the next one, or the one to which this peer was called, if that is later."""
        round = max(self.round, called)
        self._began, self.round = position, round + 1
        return round

    def end(self, round: int, *, stretch: int, position: float, is_early: bool = False) -> None:
        """This round has ended: the one that was begun, or, if that was over, a later one, which began meanwhile.

        Args:
            is_early: the others have not begun it yet; they will, within an interval.
        """
        if round >= self.round:
            self._began = position + (self.interval(round) if is_early else 0.0)
            self.round = round + 1
        self.stretch = stretch

    def took(self, step_s: float) -> None:
        """A local step took so long."""
        self._step_s.append(step_s)

    @property
    def usual_step_s(self) -> float:
        """How long a local step usually takes; 0 before the first one."""
        return statistics.median(self._step_s) if self._step_s else 0.0

    @property
    def interval_s(self) -> float:
        """How long it takes from the beginning of the round in flight until the next one is due."""
        interval = self.interval(self.round)
        return interval * self.usual_step_s if self.is_in_steps else interval

    @property
    def wait_s(self) -> float:
        """How long this peer waits for groupmates that are late. In the background, as long as its interval: nothing is
        lost by it. Without overlap its local steps stand still meanwhile."""
        if not self._gossip.overlap:
            return self._gossip.matchmaking_s or _SYNCHRONOUS_S
        return min(self._gossip.matchmaking_s or float("inf"), max(MIN_WAIT_S, self.interval_s))


def resumed(gossip: GossipConfig, local_step: int) -> Pace:
    """The pace of a swarm that goes on at this local step: the rounds before count as done. On a clock in seconds
    nobody knows how many they were, and the first interval begins now."""
    pace = Pace(gossip, position=0.0)
    if not pace.is_in_steps:
        return Pace(gossip, position=time.monotonic())
    position = pace.interval(0)
    while position <= local_step:
        pace.begin(position, called=-1)
        position += pace.interval(pace.round)
    return pace


class Stopwatch:
    """Times between calls."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def lap(self) -> float:
        """Seconds since the last call."""
        last, self._last = self._last, time.monotonic()
        return self._last - last
