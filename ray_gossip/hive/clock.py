"""When a round is due: every H local steps, or every T seconds. Pure; every peer computes the same."""

from __future__ import annotations

from ray_gossip.config import GossipConfig

MAX_STRETCH = 8  # consensus control leaves out at most seven rounds in a row


class RoundClock:
    """Maps round numbers to positions: local steps, or seconds since the swarm began.

    During warm-up the intervals grow linearly up to the configured one: early on, when gradients are large and peers
    drift apart fast, rounds are frequent.
    """

    def __init__(self, gossip: GossipConfig) -> None:
        self._interval: float = gossip.steps if gossip.steps is not None else gossip.seconds or 1.0
        self._in_steps = gossip.steps is not None
        self._warmup: list[float] = []  # positions at which the warm-up's rounds are due
        for round in range(gossip.warmup_rounds):
            interval = self._interval * (round + 1) / (gossip.warmup_rounds + 1)
            previous = self._warmup[-1] if self._warmup else 0.0
            self._warmup.append(previous + (max(1, round_half_up(interval)) if self._in_steps else interval))

    def due_at(self, round: int) -> float:
        """The position at which a round begins; round 0 is due after the first interval."""
        if round < len(self._warmup):
            return self._warmup[round]
        end_of_warmup = self._warmup[-1] if self._warmup else 0.0
        return end_of_warmup + self._interval * (round - len(self._warmup) + 1)

    def first_after(self, position: float) -> int:
        """The first round that is not due at this position yet."""
        round = self.latest_due(position, at_least=0)
        return round if self.due_at(round) > position else round + 1

    def latest_due(self, position: float, *, at_least: int) -> int:
        """The last round that is due at this position, but not one before `at_least`."""
        round = at_least
        if round >= len(self._warmup):  # a slow peer may have missed thousands
            round = max(round, int((position - self.due_at(round)) // self._interval) + round)
        while self.due_at(round + 1) <= position:
            round += 1
        return round


def round_half_up(value: float) -> int:
    """Unlike `round`, the same direction for every half."""
    return int(value + 0.5)


def stretch(current: int, *, distance: float, target: float) -> int:
    """Consensus control: how many intervals to let pass between two rounds, 1, 2, 4 or 8.

    Args:
        current: the stretch now.
        distance: consensus distance over parameter norm, as the swarm sees it.
        target: the fraction to keep it at.

    References:
        Kong et al., Consensus Control for Decentralized Deep Learning, arXiv 2102.04828.
    """
    if distance > target:
        return max(1, current // 2)
    if distance < target / 4:  # a stretch twice as long at most doubles the distance: it stays below the target
        return min(MAX_STRETCH, current * 2)
    return current
