"""Consensus control: how often a swarm has to meet for its peers to stay as close as is asked for.

Each peer declares a summary of its parameters at the beginning of each round. From the summaries of one round everybody
computes the consensus distance of the whole swarm, and proposes how many intervals to let pass between two rounds. What
counts is the median of the proposals.

References:
    Kong et al., Consensus Control for Decentralized Deep Learning, arXiv 2102.04828.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ray_gossip.gossip.pace import MAX_STRETCH
from ray_gossip.mixing import folded, spread_of_sketches

_SKETCH_DIM = 32  # a distance is within 13 % of the true one (one deviation), however the peers differ
SUMMARY_BYTES = 4 * (1 + _SKETCH_DIM)
_ENOUGH = 4  # rounds in which nothing new has come up


def summary(state: NDArray[np.float32], sketch: NDArray[np.float64]) -> bytes:
    """What a peer declares of its parameters: their norm and a small sketch, as float32 [1 + _SKETCH_DIM].

    Args:
        state: flat [size].
        sketch: of this state; a multiple of _SKETCH_DIM long.

    Returns:
        SUMMARY_BYTES, or nothing if the state or its norm is not finite.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        found = np.array([np.linalg.norm(state), *folded(sketch, _SKETCH_DIM)], dtype="<f4")
    return found.tobytes() if np.isfinite(found).all() else b""


def relative_distance(summaries: Sequence[bytes], *, num_peers: int) -> float:
    """The consensus distance of `num_peers` over the norm of their parameters, from the summaries of two or more."""
    values = np.array([np.frombuffer(each, dtype="<f4") for each in summaries], dtype=np.float64)
    norms, sketches = values[:, 0], values[:, 1:]
    unseen = len(values) / (len(values) - 1) * (num_peers - 1) / num_peers  # a sample is closer to its own mean
    return math.sqrt(unseen * spread_of_sketches(sketches)) / max(float(norms.mean()), 1e-12)


class Distance(NamedTuple):
    """How far the members of a swarm were apart when a round began."""

    round: int
    value: float  # consensus distance over parameter norm


class ConsensusControl:
    """One peer's proposal of how many intervals to let pass between two rounds: 1, 2, 4 or 8.

    It halves as soon as the distance is above the target. It doubles when the distance is below a quarter of the target
    and has done with rising: an interval twice as long at most doubles the distance of a swarm that has settled, but
    after each change it takes one that mixes slowly many rounds to settle. That it has not risen above its highest for
    some rounds holds for whole cycles too, as of a schedule that crosses nodes once in a few rounds.
    """

    def __init__(self, target: float) -> None:
        self._target = target
        self.proposal = 1
        self._present = 1  # what the swarm does
        self._seen = -1  # the latest round whose distance is known
        self._blind = 0  # rounds in a row that have brought no distance
        self._apart = 0  # rounds in a row in which the swarm has done something else
        self._highest = 0.0  # distance since the swarm does this, or since it was last above a quarter of the target
        self._calm = 0  # rounds since then

    def begin(self, distance: Distance | None, *, present: int) -> None:
        """A round has begun.

        Args:
            distance: the latest that this peer knows of.
            present: what the swarm does now.
        """
        self._apart = 0 if present == self.proposal else self._apart + 1
        if present != self._present:
            self._present, self._highest, self._calm = present, 0.0, 0
        if distance is None or distance.round <= self._seen or not math.isfinite(distance.value):
            self._blind += 1
            if self._blind >= _ENOUGH:
                self.proposal = 1
            return
        self._blind, self._seen = 0, distance.round
        self._judge(distance.value)

    def _judge(self, distance: float) -> None:
        far = distance >= self._target / 4
        if far or distance > self._highest:
            self._highest, self._calm = 0.0 if far else distance, 0
        else:
            self._calm += 1
        if distance > self._target:
            self.proposal = max(1, min(self.proposal, self._present) // 2)
        elif self._apart >= _ENOUGH:
            self.proposal = self._present
        elif self._calm >= _ENOUGH and self._apart == 0:
            self.proposal = min(MAX_STRETCH, 2 * self._present)
