"""Members as they declare themselves, and what a view of them says."""

from __future__ import annotations

from typing import Any

import pytest
from hivemind.utils import ValueWithExpiration
from hypothesis import given
from hypothesis import strategies as st

from ray_gossip.gossip.consensus import SUMMARY_BYTES
from ray_gossip.gossip.members import Member, Roster, View, donors
from ray_gossip.hive.membership import declarations, view_of
from ray_gossip.mixing.schedule import groups
from tests.unit.dictionary_dht import (
    member,
    peer_id,
)

pytestmark = pytest.mark.timeout(20)


def test_a_newcomer_asks_those_that_have_come_furthest_first() -> None:
    """One that stands still may have nothing but an old model."""
    steps = {"A": 39, "B": 414, "C": 281, "D": 414}
    view = View(tuple(member(name, index, local_step=steps[name]) for index, name in enumerate(steps)))
    orders = {tuple(donors(view, peer_id("D"))) for _ in range(20)}
    assert orders == {tuple(map(peer_id, "BCA"))}
    assert {donors(view, peer_id("A"))[0] for _ in range(100)} == {peer_id("B"), peer_id("D")}


FIELDS = st.fixed_dictionaries(
    {
        "peer_index": st.integers(0, 10_000),
        "node": st.text(max_size=20),
        "from_round": st.integers(0, 2**40),
        "round": st.integers(-1, 2**40),
        "summary": st.sampled_from([b"", bytes(range(SUMMARY_BYTES))]),
        "stretch": st.sampled_from([1, 2, 4, 8]),
        "left": st.booleans(),
        "has_own_data": st.booleans(),
    }
)


@given(FIELDS)
def test_a_declaration_arrives_as_it_was_sent(fields: dict[str, Any]) -> None:
    sent = Member(peer_id=peer_id("A"), **fields)
    assert Member.from_wire(sent.peer_id, sent.to_wire()) == sent


def test_samples_are_dealt_to_peers_that_bring_none() -> None:
    present = [member("A", peer_index=2), member("B", peer_index=1, has_own_data=True), member("C", peer_index=0)]
    assert Roster.of(present).takers == (0, 2)
    assert Roster.of(present).present == tuple(sorted(member.peer_index for member in present))


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.binary(max_size=SUMMARY_BYTES - 1))
SPOILT = {"peer_index": None, "round": "3", "left": 0, "node": b"here", "summary": b"short", "unknown": 1}


@given(
    st.one_of(
        SCALARS,
        st.lists(SCALARS),
        st.dictionaries(SCALARS, SCALARS),
        st.sampled_from(sorted(SPOILT)).map(lambda key: member("A").to_wire() | {key: SPOILT[key]}),
    )
)
def test_what_this_program_has_not_written_is_no_member(wire: Any) -> None:
    assert Member.from_wire(peer_id("A"), wire) is None
    own = member("own")
    record = ValueWithExpiration({b"A": ValueWithExpiration(wire, 1.0)}, 1.0)
    assert view_of(declarations(record), own) == View((own,))


@pytest.mark.parametrize("record", [None, ValueWithExpiration(7, 1.0), ValueWithExpiration({}, 1.0)])
def test_without_a_readable_record_a_peer_still_sees_itself(record: ValueWithExpiration[Any] | None) -> None:
    own = member("own")
    assert view_of(declarations(record), own).members == (own,)


def test_a_peers_own_declaration_is_newer_than_what_the_swarm_has_of_it() -> None:
    now = member("own", round=9)
    stale = ValueWithExpiration(member("own", round=3).to_wire(), 1.0)
    view = view_of(declarations(ValueWithExpiration({b"own": stale}, 1.0)), now)
    assert view.members == (now,)


@pytest.mark.parametrize("key", ["round", "from_round"])
def test_whoever_says_that_it_is_farther_than_the_swarm_can_be_is_no_member(key: str) -> None:
    own, other = member("A", 0, round=70), member("B", 1, round=71)
    for ahead in (101, 2**40, 2**53 - 1):
        liars = [member(f"liar{i}", 10 + i, **{key: ahead}) for i in range(9)]  # one peer declares as many as it likes
        view = view_of([(each, 9.0) for each in (own, other, *liars)], own, furthest=100)
        assert view.members == (own, other)
    assert len(view_of([(member("C", 2, **{key: 100}), 9.0)], own, furthest=100).members) == 2
    assert view_of([(member("C", 2, **{key: 2**53 - 1}), 9.0)], own, furthest=2**60).members == (own,)


def test_where_no_driver_starts_successors_nobody_is_one() -> None:
    own, liar = member("A", 0), member("B", 0, incarnation=2**52)
    assert view_of([(liar, 9.0)], own, has_driver=False).members == (own,)
    assert len(view_of([(liar, 9.0)], own).members) == 2


@given(st.permutations(["A", "B", "C", "D", "E"]), st.integers(0, 100), st.integers(1, 5))
def test_all_peers_with_the_same_view_compute_the_same_groups(names: list[str], round: int, group_size: int) -> None:
    """Whatever the order of the DHT's answer, and whichever peer asks."""
    declared = {name: member(name, peer_index) for peer_index, name in enumerate("ABCDE")}
    declared["E"] = member("E", 1)  # the successor of B, which has not expired yet
    entries = {name.encode(): ValueWithExpiration(declared[name].to_wire(), 1.0) for name in names}
    views = [view_of(declarations(ValueWithExpiration(entries, 1.0)), own) for own in declared.values()]
    assert len(set(views)) == 1
    members = views[0].at(round)
    met = groups("random", round=round, num_members=len(members), group_size=group_size)
    assert sorted(members[i].peer_id for group in met for i in group) == sorted(map(peer_id, "ABCDE"))


def test_a_newcomer_counts_from_the_round_that_it_states_and_a_peer_that_has_left_no_more() -> None:
    view = View((member("A"), member("B", from_round=5), member("C", left=True)))
    assert [m.peer_id for m in view.at(4)] == [peer_id("A")]
    assert [m.peer_id for m in view.at(5)] == [peer_id("A"), peer_id("B")]
    assert view.present == view.at(5)


def test_the_latest_round_is_that_of_the_fastest_that_is_still_there() -> None:
    assert View().latest_round == -1
    assert View((member("A", round=3), member("B", round=7), member("C", round=9, left=True))).latest_round == 7
