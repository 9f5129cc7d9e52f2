"""Which lost peers get a successor, and when."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_gossip.causes import NO_OTHERS
from ray_gossip.config import parse
from ray_gossip.errors import ConfigError
from ray_gossip.gossip.members import Member
from ray_gossip.hive.membership import view_of
from ray_gossip.swarm.replacement import STEADY_S, Replacements
from tests.unit.telemetry_records import progress, started
from tests.unit.test_watch import Watched, rounds_of


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def after(replacements: Replacements, clock: Clock, *, index: int) -> float:
    """Seconds until this peer's successor is due."""
    started = clock.now
    while index not in replacements.take_due():
        clock.now += 0.25
    return clock.now - started


def test_the_first_successor_comes_at_once_and_each_further_one_later() -> None:
    clock = Clock()
    replacements = Replacements(per_peer=5, per_run=100, clock=clock)
    pauses = []
    for _ in range(5):
        assert replacements.lost(2)
        assert replacements.are_awaited
        pauses.append(after(replacements, clock, index=2))
    assert pauses == [0.0, 1.0, 2.0, 4.0, 8.0]
    assert not replacements.lost(2)
    assert not replacements.are_awaited
    assert replacements.lost(3), "of another peer it is the first"


def test_a_peer_that_has_trained_for_a_while_begins_a_new_row() -> None:
    clock = Clock()
    replacements = Replacements(per_peer=1, per_run=100, clock=clock)
    for _ in range(20):
        replacements.trains(0)
        clock.now += STEADY_S
        assert replacements.lost(0)
        assert after(replacements, clock, index=0) == 0.0
    replacements.trains(0)
    clock.now += STEADY_S - 1
    assert not replacements.lost(0)


@given(
    per_peer=st.integers(0, 4),
    per_run=st.integers(0, 9),
    events=st.lists(st.tuples(st.integers(0, 3), st.floats(0, 200)), max_size=60),
)
def test_no_course_of_losses_goes_beyond_the_budget(
    per_peer: int, per_run: int, events: list[tuple[int, float]]
) -> None:
    clock = Clock()
    replacements = Replacements(per_peer=per_peer, per_run=per_run, clock=clock)
    given_in_all, in_a_row = 0, dict.fromkeys(range(4), 0)
    for index, trained_s in events:
        if trained_s > STEADY_S:
            replacements.trains(index)
            clock.now += trained_s
            in_a_row[index] = 0
        if replacements.lost(index):
            given_in_all += 1
            in_a_row[index] += 1
        replacements.take_due()
        assert in_a_row[index] <= per_peer
    assert given_in_all <= per_run


def test_nothing_is_due_after_cancel() -> None:
    replacements = Replacements(per_peer=3, per_run=9)
    assert replacements.lost(0)
    replacements.cancel()
    assert not replacements.are_awaited
    assert replacements.take_due() == []
    assert not replacements.lost(1)


def test_loops_and_shipped_hivemind_have_no_successors_unless_asked_for() -> None:
    assert parse({}).max_replacements == 3
    assert parse({"train": {"loop": "mine:main"}}).max_replacements == 0
    assert parse({"train": {"loop": "mine:main"}, "swarm": {"max_replacements": 2}}).max_replacements == 2
    assert parse({"engine": "hivemind"}).max_replacements == 0
    with pytest.raises(ConfigError, match="max_replacements needs engine=gossip"):
        parse({"engine": "hivemind", "swarm": {"max_replacements": 1}})


def member(name: str, index: int, incarnation: int = 0) -> Member:
    return Member(peer_id=name, peer_index=index, incarnation=incarnation)


def test_a_successor_takes_the_place_of_its_predecessor_as_soon_as_it_is_declared() -> None:
    dead, successor, other = member("A", 0), member("B", 0, 1), member("C", 1)
    assert view_of([(dead, 9.0), (other, 9.0)], other).members == (dead, other)
    for own in (other, successor):
        assert view_of([(dead, 9.0), (successor, 9.0), (other, 9.0)], own).members == (successor, other)


def test_who_was_taken_for_dead_still_sees_itself_beside_its_successor() -> None:
    dead, successor = member("A", 0), member("B", 0, 1)
    assert set(view_of([(successor, 9.0)], dead).members) == {dead, successor}


def test_that_nobody_is_met_while_the_only_other_peer_comes_in_again_is_no_trouble() -> None:
    for seconds, told in ((0.2, False), (5.0, True)):
        swarm = Watched(2)
        swarm.see([replace(started(1, wall_time=1010.0), incarnation=1), progress(1, 5, wall_time=1010.1)])
        for number in range(4):
            at = 1010.2 + seconds * (1 + number)
            alone = rounds_of([0], number, outcome="alone", cause=NO_OTHERS)
            swarm.see(replace(each, wall_time=at) for each in alone)
        assert bool(swarm.told) is told
