"""Consensus control, without a network: the rule of each peer, the views and the schedules are the real ones."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from ray_gossip.gossip.consensus import ConsensusControl, Distance, relative_distance, summary
from ray_gossip.gossip.members import Member, View
from ray_gossip.gossip.pace import MAX_STRETCH
from ray_gossip.mixing import Sketch, average_round, consensus_distance, folded
from ray_gossip.mixing.schedule import groups

NUM_PEERS, GROUP_SIZE, SIZE = 16, 4, 200
NUM_INTERVALS = 300
NODES = [peer // 4 for peer in range(NUM_PEERS)]
SCHEDULES = ("grid", "random", "ring", "local", "all")
TARGET = 0.1

Drift = Callable[[np.random.Generator], NDArray[np.float64]]
"""What local steps add in an interval at a learning rate of 1, [NUM_PEERS, SIZE]."""


def noise(rng: np.random.Generator) -> NDArray[np.float64]:
    """Gradient noise alone."""
    return rng.standard_normal((NUM_PEERS, SIZE))


def skewed(rng: np.random.Generator) -> NDArray[np.float64]:
    """Each peer and each node has samples of its own kind: a group within a node sees little of how far it drifts."""
    own = np.random.default_rng(99)
    there = own.standard_normal((NUM_PEERS, SIZE)) + 2 * own.standard_normal((4, SIZE))[NODES]
    there -= there.mean(axis=0)
    return there + 0.25 * rng.standard_normal((NUM_PEERS, SIZE))


def falling(interval: int) -> float:
    """A learning rate that falls from 1 to 0 along a cosine."""
    return 0.5 + 0.5 * math.cos(math.pi * interval / NUM_INTERVALS)


def constant(interval: int) -> float:
    """A learning rate that stays."""
    return 1.0


@dataclass
class Course:
    """What became of a swarm."""

    distances: list[float] = field(default_factory=list)  # the true ones, before each round; relative
    stretches: list[int] = field(default_factory=list)  # of the peers' paces, the longest before each round


class Peer:
    """What it declares and proposes, and the pace that it has made of it."""

    def __init__(self, index: int, target: float) -> None:
        self.control, self.stretch = ConsensusControl(target), 1
        self.declared = Member(peer_id=f"{index:02d}", peer_index=index)

    def begin(self, round: int, state: NDArray[np.float64], sketch: NDArray[np.float64]) -> None:
        told = summary(state.astype(np.float32), sketch)
        self.declared = replace(self.declared, round=round, summary=told, stretch=self.control.proposal)

    def look(self, seen: Sequence[Member]) -> None:
        self.control.begin(View(tuple(seen)).distance, present=View(tuple(seen)).stretch)
        others = [member for member in seen if member.peer_id != self.declared.peer_id]
        self.stretch = View((*others, replace(self.declared, stretch=self.control.proposal))).stretch


@functools.cache
def sketching() -> NDArray[np.float64]:
    """A sketch is linear: this times a state is its sketch."""
    return np.array([Sketch(SIZE)(row) for row in np.eye(SIZE)])


def train(
    schedule: str,
    drift: Drift,
    rate: Callable[[int], float] = falling,
    *,
    scale: float,
    target: float | None,
    seed: int = 0,
) -> Course:
    """A swarm whose peers see of each other, by chance, what they declare of this round or have declared of the last.

    Args:
        scale: of what local steps add.
        target: None: without consensus control.
    """
    rng, course = np.random.default_rng(seed), Course()
    values = np.tile(rng.standard_normal(SIZE), (NUM_PEERS, 1))
    peers = [Peer(index, target) for index in range(NUM_PEERS)] if target is not None else []
    since = round = 0
    for interval in range(NUM_INTERVALS):
        values = values + scale * rate(interval) * drift(rng)
        since += 1
        if peers and since < min(peer.stretch for peer in peers):
            continue  # else the peer that is due calls the others to the round
        course.distances.append(consensus_distance(values) / float(np.linalg.norm(values, axis=1).mean()))
        course.stretches.append(max((peer.stretch for peer in peers), default=1))
        last = [peer.declared for peer in peers]
        sketches = np.einsum("ps,sd->pd", values, sketching())  # without threads, unlike @
        for peer, state, sketch in zip(peers, values, sketches, strict=False):
            peer.begin(round, state, sketch)
        for i, peer in enumerate(peers):
            late = rng.random(NUM_PEERS) < 0.5
            peer.look([last[j] if late[j] and j != i else peers[j].declared for j in range(NUM_PEERS)])
        met = groups(schedule, round=round, num_members=NUM_PEERS, group_size=GROUP_SIZE, nodes=NODES)
        values = average_round(values, met)
        since, round = 0, round + 1
    return course


def scale_for(schedule: str, drift: Drift, *, distance: float) -> float:
    """At which the distance of a swarm that holds all its rounds comes up to this, and not above it."""
    return 1e-3 * distance / max(train(schedule, drift, scale=1e-3, target=None).distances)


@pytest.mark.parametrize("drift", [noise, skewed])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_fewer_rounds_are_held_and_the_true_distance_stays_below_the_target(schedule: str, drift: Drift) -> None:
    scale = scale_for(schedule, drift, distance=TARGET / 2)
    course = train(schedule, drift, scale=scale, target=TARGET)
    assert len(course.distances) <= 0.75 * NUM_INTERVALS
    assert max(course.distances) < TARGET
    assert max(course.stretches) == MAX_STRETCH


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_where_peers_drift_at_the_same_speed_for_ever_a_longer_interval_does_not_take_them_above_the_target(
    schedule: str,
) -> None:
    scale = scale_for(schedule, skewed, distance=TARGET / 5)
    course = train(schedule, skewed, constant, scale=scale, target=TARGET)
    assert max(course.distances) < TARGET
    assert course.stretches[-1] == 2


def test_a_swarm_that_is_far_apart_whatever_it_does_holds_every_round() -> None:
    course = train("ring", skewed, constant, scale=1e-3, target=1e-6)
    assert course.stretches == [1] * NUM_INTERVALS


class TestProposal:
    """Of one peer."""

    def test_doubles_as_long_as_all_is_calm(self) -> None:
        assert proposals(ConsensusControl(1.0), [0.2] * 40)[-1] == MAX_STRETCH
        assert sorted(set(proposals(ConsensusControl(1.0), [0.2] * 40))) == [1, 2, 4, 8]

    def test_stays_while_the_distance_still_rises_however_small_it_is(self) -> None:
        assert set(proposals(ConsensusControl(1.0), [1e-3 * round for round in range(100)])) == {1}

    def test_stays_through_a_rising_cycle_however_long_until_it_has_come_round(self) -> None:
        cycle = [0.01 * step for step in range(1, 17)]
        seen = proposals(ConsensusControl(1.0), cycle * 2)
        assert set(seen[:16]) == {1}
        assert seen[-1] > 1

    def test_stays_between_a_quarter_of_the_target_and_the_target(self) -> None:
        control = ConsensusControl(1.0)
        proposals(control, [0.2] * 10)
        before = control.proposal
        assert before > 1
        assert set(proposals(control, [0.3, 0.9, 0.5] * 20, first=10)) == {before}

    def test_halves_in_each_round_above_the_target(self) -> None:
        control = ConsensusControl(1.0)
        proposals(control, [0.2] * 40)
        assert proposals(control, [1.1] * 4, first=40) == [4, 2, 1, 1]

    @pytest.mark.parametrize("nothing", [None, Distance(39, 0.2), Distance(99, math.nan)])
    def test_is_one_when_nothing_new_was_heard_for_several_rounds(self, nothing: Distance | None) -> None:
        control = ConsensusControl(1.0)
        proposals(control, [0.2] * 40)
        seen = []
        for _ in range(6):
            control.begin(nothing, present=MAX_STRETCH)
            seen.append(control.proposal)
        assert seen == [8, 8, 8, 1, 1, 1]

    def test_follows_a_swarm_that_goes_on_doing_something_else(self) -> None:
        newcomer = ConsensusControl(1.0)
        for round in range(10):
            newcomer.begin(Distance(round, 0.5), present=4)
        assert newcomer.proposal == 4


def proposals(control: ConsensusControl, distances: Sequence[float], *, first: int = 0) -> list[int]:
    """After each round of a swarm that does what this peer proposes."""
    found = []
    for round, distance in enumerate(distances, start=first):
        control.begin(Distance(round, distance), present=control.proposal)
        found.append(control.proposal)
    return found


def states(num_peers: int, size: int = 5000) -> NDArray[np.float32]:
    """Peers that are 1 % of their norm apart [num_peers, size]."""
    rng = np.random.default_rng(0)
    common, own = rng.standard_normal(size), rng.standard_normal((num_peers, size))
    return (common + 0.01 * own).astype(np.float32)


def summaries(values: NDArray[np.float32]) -> list[bytes]:
    sketch = Sketch(values.shape[1])
    return [summary(row, sketch(row)) for row in values]


def test_the_distance_of_the_swarm_is_known_from_summaries_of_all_or_of_half_of_it() -> None:
    told = summaries(states(16))
    assert relative_distance(told, num_peers=16) == pytest.approx(0.01, rel=0.15)
    assert relative_distance(told[::2], num_peers=16) == pytest.approx(0.01, rel=0.2)


def test_peers_that_are_alike_are_at_no_distance() -> None:
    assert relative_distance(summaries(np.tile(states(1), (4, 1))), num_peers=4) == 0.0


def test_a_state_of_zeros_has_a_distance() -> None:
    assert relative_distance(summaries(np.zeros((3, 10), dtype=np.float32)), num_peers=3) == 0.0


@pytest.mark.parametrize("value", [math.nan, 3e38])
def test_a_peer_that_is_not_finite_declares_nothing(value: float) -> None:
    assert summaries(np.full((1, 100), value, dtype=np.float32)) == [b""]


def test_a_folded_sketch_is_the_smaller_sketch_of_the_same_values() -> None:
    values = np.random.default_rng(0).standard_normal(70_000)
    np.testing.assert_allclose(folded(Sketch(70_000)(values), 32), Sketch(70_000, dim=32)(values), atol=1e-9)


def member(index: int, round: int, told: bytes) -> Member:
    return Member(peer_id=f"{index}", peer_index=index, round=round, summary=told)


def test_the_distance_is_of_the_latest_round_of_which_at_least_half_of_the_members_say() -> None:
    told = summaries(states(5))
    early = [member(index, 7, told[index]) for index in range(3)]
    assert View((*early, member(3, 8, told[3]))).distance == Distance(7, relative_distance(told[:3], num_peers=4))
    both = View((*early[:2], member(2, 8, told[2]), member(3, 8, told[3])))
    assert both.distance == Distance(8, relative_distance(told[2:4], num_peers=4))


def test_the_distance_is_unknown_when_few_say_or_nobody_else_is_there() -> None:
    told = summaries(states(5))
    assert View().distance is View((member(0, 7, told[0]),)).distance is None
    assert View((member(0, 7, told[0]), member(1, 7, b""))).distance is None
    assert View(tuple(member(index, index, told[index]) for index in range(5))).distance is None


def test_newcomers_and_peers_that_have_left_are_not_asked_for_the_distance() -> None:
    told = summaries(states(2))
    new = Member(peer_id="8", peer_index=8, round=19, from_round=20)
    gone = [replace(member(index, 9, b""), left=True) for index in (5, 6, 7)]
    view = View((member(0, 9, told[0]), member(1, 9, told[1]), new, *gone))
    assert view.distance == Distance(9, relative_distance(told, num_peers=2))
