"""Consensus control: how often a swarm has to meet for its peers to stay as close as is asked for."""

from __future__ import annotations

from ray_gossip.hive.pace import MAX_STRETCH


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
