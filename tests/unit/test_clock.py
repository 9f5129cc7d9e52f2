"""When rounds are due, and consensus control."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_gossip.config import GossipConfig
from ray_gossip.hive.clock import MAX_STRETCH, RoundClock, stretch


def test_rounds_in_steps_are_due_every_h_steps() -> None:
    clock = RoundClock(GossipConfig(steps=20))
    assert [clock.due_at(round) for round in range(4)] == [20, 40, 60, 80]


def test_rounds_in_seconds_are_due_every_t_seconds() -> None:
    clock = RoundClock(GossipConfig(seconds=1.5))
    assert [clock.due_at(round) for round in range(3)] == [1.5, 3.0, 4.5]


def test_intervals_grow_linearly_during_the_warm_up() -> None:
    clock = RoundClock(GossipConfig(steps=20, warmup_rounds=4))
    dues = [clock.due_at(round) for round in range(7)]
    assert [after - before for before, after in zip([0, *dues], dues, strict=False)] == [4, 8, 12, 16, 20, 20, 20]


def test_a_warm_up_never_asks_for_two_rounds_in_one_step() -> None:
    clock = RoundClock(GossipConfig(steps=2, warmup_rounds=10))
    dues = [clock.due_at(round) for round in range(15)]
    assert all(after - before >= 1 for before, after in zip([0, *dues], dues, strict=False))


@given(steps=st.integers(1, 50), warmup=st.integers(0, 10), position=st.integers(0, 5000), at_least=st.integers(0, 200))
def test_the_latest_due_round_is_due_and_the_next_is_not(steps: int, warmup: int, position: int, at_least: int) -> None:
    clock = RoundClock(GossipConfig(steps=steps, warmup_rounds=warmup))
    round = clock.latest_due(position, at_least=at_least)
    assert round >= at_least
    assert clock.due_at(round + 1) > position
    assert round == at_least or clock.due_at(round) <= position


def test_control_shortens_above_the_target_and_lengthens_far_below() -> None:
    assert stretch(4, distance=0.02, target=0.01) == 2
    assert stretch(4, distance=0.008, target=0.01) == 4
    assert stretch(4, distance=0.001, target=0.01) == 8
    assert stretch(1, distance=0.02, target=0.01) == 1
    assert stretch(MAX_STRETCH, distance=0.001, target=0.01) == MAX_STRETCH


@pytest.mark.parametrize(("steps", "warmup_rounds"), [(20, 0), (20, 3), (1, 0)])
def test_a_swarm_that_goes_on_counts_the_rounds_before_as_done(steps: int, warmup_rounds: int) -> None:
    clock = RoundClock(GossipConfig(steps=steps, warmup_rounds=warmup_rounds))
    for position in range(130):
        first = clock.first_after(position)
        assert clock.due_at(first) > position
        assert first == 0 or clock.due_at(first - 1) <= position
