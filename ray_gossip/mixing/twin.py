"""The network-free twin: the arithmetic of rounds on arrays, for swarms of thousands of peers.

Real rounds are compared with `average_round`; `simulate` answers what a schedule, failures, overlap, momentum
or a codec do to the spread before any GPU is asked.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ray_gossip.mixing.closed_form import FailureMode
from ray_gossip.mixing.outer import OuterMomentum
from ray_gossip.mixing.schedule import Groups, groups
from ray_gossip.mixing.spread import squared_spread

Codec = Callable[[NDArray[Any]], NDArray[Any]]
"""What is left of an array [num_peers, size] after being compressed and decompressed, row by row."""

Overlap = Literal["none", "serial", "pipelined"]
"""none: local steps wait for the round. serial: they go on, the delta is added when the round ends, then
comes the next snapshot. pipelined: the next snapshot is taken before that, which hardly mixes at alpha 1."""


@dataclass(frozen=True, kw_only=True)
class Failures:
    """Each member fails with `probability` in each round, for that round only; it then keeps its values."""

    probability: float = 0.0
    mode: FailureMode = "rest"


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """What became of the swarm."""

    before: NDArray[np.float64]  # [num_rounds], squared spread of the snapshots
    after: NDArray[np.float64]  # [num_rounds], squared spread when the next local steps begin
    values: NDArray[np.float64]  # [num_peers, size], at the end


def lossless(values: NDArray[Any]) -> NDArray[Any]:
    """The codec that loses nothing."""
    return values


def average_round(values: NDArray[Any], groups: Groups, alpha: float = 1.0, *, codec: Codec = lossless) -> NDArray[Any]:
    """One round: x + alpha (group mean - x) for values [num_peers, size]; a peer in no group keeps its own.

    With a codec, what peers send and the deltas they get back have both passed through it, as in hivemind.
    """
    sent = codec(values)
    return values + alpha * codec(_means(sent, groups) - sent)


def simulate(
    values: NDArray[Any],
    *,
    schedule: str,
    group_size: int,
    num_rounds: int,
    alpha: float = 1.0,
    noise: float = 0.0,
    failures: Failures | None = None,
    outer: Callable[[NDArray[Any]], OuterMomentum] | None = None,
    codec: Codec = lossless,
    overlap: Overlap = "none",
    nodes: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Simulation:
    """A swarm that starts at values [num_peers, size] and goes through `num_rounds`.

    Args:
        noise: standard deviation per coordinate of what local steps add between two rounds.
        outer: makes a peer's outer momentum from its first values; leave alpha at 1 then.
        nodes: the node of each peer, for the schedule `local`.
        seed: of schedule, noise and failures.
    """
    rng = np.random.default_rng(seed)
    failures = failures or Failures()
    values = values.astype(np.float64)
    outers = [outer(row) for row in values] if outer else []
    pending = np.zeros_like(values)
    before, after = np.empty(num_rounds), np.empty(num_rounds)
    for round in range(num_rounds):
        local = noise * rng.standard_normal(values.shape)
        snapshot = values + local if overlap == "none" else values
        met = groups(schedule, round=round, num_members=len(values), group_size=group_size, seed=seed, nodes=nodes)
        alive = rng.random(len(values)) >= failures.probability
        survived = _surviving(met, alive, failures.mode, group_size, rng)
        sent = codec(snapshot)
        means = _sliced_means(sent, met, alive) if failures.mode == "slice" else _means(sent, survived)
        target = snapshot + codec(means - sent)
        if outers:
            for peer in itertools.chain.from_iterable(group for group in survived if len(group) > 1):
                target[peer] = outers[peer].step(target[peer])
        delta = alpha * (target - snapshot)
        if overlap == "pipelined":
            delta, pending = pending, delta
        values = (snapshot if overlap == "none" else snapshot + local) + delta
        before[round], after[round] = squared_spread(snapshot), squared_spread(values)
    return Simulation(before=before, after=after, values=values)


def _surviving(
    met: Groups, alive: NDArray[np.bool_], mode: FailureMode, group_size: int, rng: np.random.Generator
) -> Groups:
    """The groups that go on when only some members are alive."""
    if mode == "regroup":
        survivors = rng.permutation(np.flatnonzero(alive))
        num_groups = len(survivors) // group_size
        return tuple(tuple(group.tolist()) for group in np.array_split(survivors, num_groups)) if num_groups else ()
    if mode == "void":
        return tuple(group for group in met if alive[list(group)].all())
    rests = (tuple(peer for peer in group if alive[peer]) for group in met)
    return tuple(rest for rest in rests if rest)


def _means(values: NDArray[Any], met: Groups) -> NDArray[Any]:
    """Each peer's group mean [num_peers, size]; its own values where it is in no group."""
    means = values.copy()
    if met:
        peers = np.concatenate(met)
        sizes = np.array([len(group) for group in met])
        sums = np.add.reduceat(values[peers], np.cumsum(sizes) - sizes, axis=0)
        means[peers] = np.repeat(sums / sizes[:, None], sizes, axis=0)
    return means


def _sliced_means(values: NDArray[Any], met: Groups, alive: NDArray[np.bool_]) -> NDArray[Any]:
    """As `_means` over the living of each group, but a slice whose reducer is dead stays as it was."""
    means = values.copy()
    for group in met:
        survivors = [peer for peer in group if alive[peer]]
        for reducer, columns in zip(group, np.array_split(np.arange(values.shape[1]), len(group)), strict=True):
            if alive[reducer]:
                part = np.ix_(survivors, columns)
                means[part] = values[part].mean(axis=0)
    return means
