"""A peer whose sidecar has died is declared again by the next one. A dictionary stands for the DHT."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hivemind.utils import ValueWithExpiration

from ray_gossip.gossip.members import MOST_AHEAD, View
from ray_gossip.hive import membership
from ray_gossip.hive.membership import Membership, members_key
from tests.unit.dictionary_dht import DictionaryDHT, enter, member, stop_renewing


def from_round_of_first(view: View) -> int:
    return next(member.from_round for member in view.present if member.peer_index == 0)


@pytest.mark.parametrize(
    ("age_s", "declared_from", "called", "from_round"),
    [
        (0.0, 0, -1, 8),  # the others have never left it out: from the next round on
        (0.0, 0, 8, 9),  # which has begun, as this peer was told
        (0.0, 20, -1, 20),  # it had not counted yet
        (membership.MEMBER_TTL_S - 2.0, 0, -1, 9),  # some may have left it out already
        (membership.MEMBER_TTL_S, 0, -1, 9),
    ],
)
def test_a_peer_that_is_declared_by_another_process_counts_again_as_soon_as_all_others_know_it(
    age_s: float, declared_from: int, called: int, from_round: int
) -> None:
    async def test() -> None:
        dht = DictionaryDHT()
        dead, other = enter(dht, "A", 0), enter(dht, "B", 1)
        await dead.join(declared_from)
        stop_renewing(dead)
        value, expires_at = dht.records[members_key("test")][b"A"]
        dht.records[members_key("test")][b"A"] = ValueWithExpiration(value, expires_at - age_s)
        await other.join(0)
        await other.at_round(7, local_step=0)
        await other._declare()
        next_one = enter(dht, "A", 0)
        assert await next_one.join_again(called=called, began_as="") == from_round
        assert from_round_of_first(await other.read()) == from_round

    asyncio.run(test())


def test_a_peer_that_is_declared_again_counts_though_its_last_declaration_holds_for_long() -> None:
    async def test() -> None:
        dht = DictionaryDHT()
        slow = enter(dht, "A", 0)
        await slow.join(0)
        slow._took_s = 30.0
        await slow._declare()
        stop_renewing(slow)
        next_one = enter(dht, "A", 0)
        await next_one.join_again(called=4, began_as="")
        assert not next_one.has_expired
        assert from_round_of_first(await enter(dht, "B", 1).read()) == 5

    asyncio.run(test())


def test_a_peer_that_is_declared_again_knows_those_that_the_process_before_saw_until_they_would_have_expired(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(membership, "MEMBER_TTL_S", 0.5)

    async def test() -> None:
        dht = DictionaryDHT()
        there, *lost = [member(name, index) for index, name in enumerate("BCD", start=1)]
        await enter(dht, "B", 1).join(5)
        next_one = enter(dht, "A", 0)
        await next_one.join_again(called=4, began_as="", before=(there, *lost))
        assert [(each.peer_index, each.from_round) for each in next_one.view.present] == [
            (0, 6),
            (1, 5),
            (2, 0),
            (3, 0),
        ]
        await asyncio.sleep(0.6)
        assert {each.peer_id for each in lost} <= set(dht.called)
        await next_one.read()
        assert next_one.silent[-2:] == ("peer-02", "peer-03")

    asyncio.run(test())


def test_nobody_takes_a_peer_farther_than_a_swarm_can_have_come_and_it_follows_one_that_was_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr(membership, "monotonic", lambda: clock[0])

    async def test() -> None:
        dht = DictionaryDHT()
        own, other, far = enter(dht, "A", 0), enter(dht, "B", 1), enter(dht, "C", 2)
        for each in (own, other, far):
            await each.join(0)
        began = own.furthest
        assert MOST_AHEAD <= began < MOST_AHEAD + 1000
        clock[0] += 5000.0
        assert own.furthest > 400_000 + began  # half a day apart with one round in ten seconds, or ten in one
        for round in range(1, 20):
            clock[0] += 1000.0
            await own.at_round(round, local_step=0)
            await own.read()
            assert round == 1 or own.furthest < MOST_AHEAD + 100 * 2100, "it grows no more than in some minutes"
        far.own = replace(far.own, round=2**40)
        await far._declare()
        assert {member.peer_index for member in (await own.read()).members} == {0, 1}
        far.own = replace(far.own, round=10**6)
        await far._declare()
        assert (await own.read()).latest_round == 10**6
        for each in (own, other, far):
            stop_renewing(each)

    asyncio.run(test())


@pytest.mark.parametrize("began", range(0, 1200, 150))
def test_one_that_was_taken_to_the_last_round_that_it_believes_is_followed_within_minutes(
    began: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(membership, "monotonic", lambda: clock[0])

    async def test() -> None:
        dht = DictionaryDHT()
        taken, other = enter(dht, "A", 0), enter(dht, "B", 1)
        await taken.join(0)
        clock[0] = float(began)
        await other.join(began)
        while clock[0] < 6000.0 or taken._is_at[1] + membership._ANEW_S > clock[0] + 10.0:  # it believes most just then
            clock[0] += 10.0
            await go_to(other, int(clock[0]))
            if clock[0] % 100.0 == 0:  # it reads more rarely, and so reckons from an earlier round
                await go_to(taken, int(clock[0]))
        ahead = taken.furthest - int(clock[0])
        for _ in range(150):
            clock[0] += 10.0
            await go_to(taken, int(clock[0]) + ahead)
            await go_to(other, int(clock[0]))
            if other.view.latest_round == taken.own.round:
                break
        assert other.view.latest_round == taken.own.round
        for each in (taken, other):
            stop_renewing(each)

    async def go_to(each: Membership, round: int) -> None:
        each.own = replace(each.own, round=round)
        await each._declare()
        await each.read()

    asyncio.run(test())
