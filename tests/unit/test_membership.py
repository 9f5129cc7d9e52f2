"""The members of a swarm, without a network: a dictionary stands for the DHT."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import pytest
from hivemind.utils import ValueWithExpiration

from ray_gossip.gossip.consensus import ConsensusControl, Distance
from ray_gossip.gossip.members import REFRESH_S
from ray_gossip.hive import membership
from ray_gossip.hive.membership import members_key
from tests.unit.dictionary_dht import (
    DEADLINE_S,
    DictionaryDHT,
    enter,
    peer_id,
    stop_renewing,
    until,
)

pytestmark = pytest.mark.timeout(20)


def test_members_that_joined_see_each_other_and_one_that_left_is_gone_at_once() -> None:
    async def test() -> None:
        dht = DictionaryDHT()
        first, second = enter(dht, "A", 0), enter(dht, "B", 1)
        await first.join(0)
        view = await second.join(0)
        assert [m.name for m in view.present] == ["peer-00", "peer-01"]
        assert await first.read() == view
        await second.leave()
        assert [m.name for m in (await first.read()).present] == ["peer-00"]

    asyncio.run(test())


def test_joining_twice_declares_the_new_round_and_renews_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "REDECLARE_S", 0.01)

    async def test() -> None:
        dht = DictionaryDHT()
        peer = enter(dht, "A", 0)
        await peer.join(0)
        before = asyncio.all_tasks()
        view = await peer.join(12)
        assert (view.members[0].from_round, view.members[0].round) == (12, 11)
        assert asyncio.all_tasks() == before

    asyncio.run(test())


def test_a_declaration_is_renewed_while_the_process_lives_and_fades_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "REDECLARE_S", 0.02)
    monkeypatch.setattr(membership, "MEMBER_TTL_S", 0.3)

    async def test() -> None:
        dht = DictionaryDHT()
        living, observer = enter(dht, "A", 0), enter(dht, "B", 1)
        await living.join(0)
        first = dht.records[members_key("test")][b"A"].expiration_time

        async def is_renewed() -> bool:
            return bool(dht.records[members_key("test")][b"A"].expiration_time > first + 0.6)

        await until(is_renewed)
        assert len((await observer.read()).present) == 2
        assert living._renewing is not None
        living._renewing.cancel()

        async def has_faded() -> bool:
            return len((await observer.read()).present) == 1

        await until(has_faded)

    asyncio.run(test())


def test_where_declaring_takes_long_a_declaration_holds_longer() -> None:
    async def test() -> None:
        peer = enter(DictionaryDHT(), "A", 0)
        await peer.join(0)
        assert peer._ttl_s == pytest.approx(membership.MEMBER_TTL_S, abs=0.1)
        peer._took_s = 30.0
        assert peer._ttl_s > membership.MEMBER_TTL_S + 3 * 30.0 - 1
        peer._took_s = 300.0
        assert peer._ttl_s <= membership._LONGEST_S - 3, "the others take none that holds longer, by their own clocks"

    asyncio.run(test())


@pytest.mark.parametrize(("num_vanished", "is_hermit"), [(1, False), (2, True)])
def test_a_peer_that_loses_sight_of_several_at_once_takes_itself_for_cut_off(
    num_vanished: int, is_hermit: bool
) -> None:
    async def test() -> None:
        dht = DictionaryDHT()
        peers = [enter(dht, name, index) for index, name in enumerate("ABC"[: num_vanished + 1])]
        for peer in peers:
            await peer.join(0)
        assert len((await peers[0].read()).present) == num_vanished + 1
        dht.records.clear()
        peers[0]._declared = {name: (each, 0.0) for name, (each, _) in peers[0]._declared.items()}
        await peers[0].read()
        assert peers[0].is_hermit == is_hermit

    asyncio.run(test())


def test_members_that_vanished_and_are_back_are_missed_no_more() -> None:
    async def test() -> None:
        dht = DictionaryDHT()
        first, *others = [enter(dht, name, index) for index, name in enumerate("ABC")]
        for peer in (first, *others):
            await peer.join(0)
        await first.read()
        dht.records.clear()
        first._declared = {name: (each, 0.0) for name, (each, _) in first._declared.items()}
        await first.read()
        assert list(first.silent) == ["peer-01", "peer-02"]
        assert first.is_hermit
        await enter(dht, "D", 1).join(0)  # the index of one that vanished
        await first.read()
        assert list(first.silent) == ["peer-02"]
        for peer in others:
            await peer._declare()
        await first.read()
        assert not first.silent
        for peer in others:
            await peer.leave()
        await first.read()
        assert not first.is_hermit

    asyncio.run(test())


def test_a_peer_that_says_goodbye_makes_no_hermit() -> None:
    async def test() -> None:
        dht = DictionaryDHT()
        peers = [enter(dht, name, index) for index, name in enumerate("ABC")]
        for peer in peers:
            await peer.join(0)
        for peer in peers[1:]:
            await peer.leave()
        await peers[0].read()
        dht.records.clear()
        peers[0]._declared = {name: (each, 0.0) for name, (each, _) in peers[0]._declared.items()}
        await peers[0].read()
        assert not peers[0].is_hermit

    asyncio.run(test())


def test_an_answer_that_lacks_somebody_hides_nobody_before_the_declaration_expires(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(membership, "MEMBER_TTL_S", 0.3)

    async def test() -> None:
        dht = DictionaryDHT()
        first, second = enter(dht, "A", 0), enter(dht, "B", 1)
        await first.join(0)
        await second.join(0)
        whole = await first.read()
        dht.records.clear()
        assert await first.read() == await first.read() == whole

        async def has_expired() -> bool:
            return [member.name for member in (await first.read()).members] == ["peer-00"]

        await until(has_expired)

    asyncio.run(test())


def test_one_that_is_missed_is_called_by_name_until_it_is_back_and_one_that_left_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(membership, "MEMBER_TTL_S", 0.3)
    monkeypatch.setattr(membership, "REDECLARE_S", 0.02)

    async def test() -> None:
        dht = DictionaryDHT()
        first, missed, left = (enter(dht, name, index) for index, name in enumerate("ABC"))
        await first.join(0)
        for peer in (missed, left):
            await peer.join(0)
        await left.leave()
        await first.read()
        dht.records.clear()
        stop_renewing(missed)
        for is_there in (True, False):  # its declaration holds still; it has expired

            async def is_called(is_there: bool = is_there) -> bool:
                view = await first.read()
                return peer_id("B") in dht.called and (peer_id("B") in [m.peer_id for m in view.members]) == is_there

            await until(is_called)
            dht.called.clear()
        await missed.join(0)
        await first.read()
        await asyncio.sleep(0.1)  # what was under way
        dht.called.clear()
        await asyncio.sleep(0.2)
        assert dht.called == []

    asyncio.run(test())


def test_a_peer_that_cannot_renew_its_declaration_says_so_instead_of_fading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "REDECLARE_S", 0.01)

    def store(*_: Any, **__: Any) -> Any:
        raise ConnectionError("the DHT process is gone")

    async def test() -> None:
        dht = DictionaryDHT()
        peer = enter(dht, "A", 0)
        await peer.join(0)
        monkeypatch.setattr(dht, "store", store)
        await asyncio.wait({peer._renewing} if peer._renewing else (), timeout=DEADLINE_S)
        with pytest.raises(ConnectionError, match="the DHT process is gone"):
            await peer.at_round(0, local_step=0)

    asyncio.run(test())


def test_a_member_that_has_left_is_not_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "REDECLARE_S", 0.01)

    async def test() -> None:
        dht = DictionaryDHT()
        peer = enter(dht, "A", 0)
        await peer.join(0)
        await peer.leave()
        num_stores = dht.num_stores
        await asyncio.sleep(0.1)
        assert dht.num_stores == num_stores
        assert dht.records[members_key("test")][b"A"].value == peer.own.to_wire()

    asyncio.run(test())


def test_a_round_declares_progress_and_reads_the_swarm_at_most_every_half_second() -> None:
    async def test() -> None:
        dht = DictionaryDHT()
        first, second = enter(dht, "A", 0), enter(dht, "B", 1)
        await first.join(0)
        await second.join(0)
        num_stores = dht.num_stores
        assert len((await first.at_round(3, local_step=0)).members) == 1  # read less than half a second ago
        assert (dht.num_stores, first.own.round) == (num_stores, 3)
        first._read_at -= REFRESH_S
        view = await first.at_round(4, local_step=0)
        assert len(view.members) == 2
        assert view.latest_round == 4

        async def is_declared() -> bool:
            return (await second.read()).latest_round == 4

        await until(is_declared)

    asyncio.run(test())


def test_with_consensus_control_every_round_declares_and_reads_and_all_agree_on_how_often_they_meet() -> None:
    told = np.ones(1 + 32, dtype="<f4").tobytes()

    async def test() -> None:
        dht = DictionaryDHT()
        peers = [enter(dht, name, index, ConsensusControl(0.1)) for index, name in enumerate("ABC")]
        for peer in peers:
            await peer.join(0)
        for round in range(20):
            num_stores = dht.num_stores
            for peer in peers:
                view = await peer.at_round(round, local_step=round, summary=told)
            assert [each.round for each in view.members] == [round] * 3
            assert view.distance == Distance(round, 0.0)
            assert dht.num_stores == num_stores + 3
            for peer in peers:
                peer.control_consensus()
        await peers[0].read()
        assert {peer.own.stretch for peer in peers} == {8}
        assert peers[0].stretch == 8

    asyncio.run(test())


def test_the_newest_declaration_counts_though_an_older_one_took_long() -> None:
    async def test() -> None:
        dht = DictionaryDHT()
        peer = enter(dht, "A", 0)
        await peer.join(0)
        peer._took_s = 10.0
        await peer._declare()
        await peer.leave()
        assert dht.records[members_key("test")][b"A"].value == peer.own.to_wire()

    asyncio.run(test())


def test_a_round_does_not_wait_for_a_dht_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "_READ_S", 0.1)

    class HangingDHT(DictionaryDHT):
        def __init__(self) -> None:
            super().__init__()
            self.answers = asyncio.Event()

        def get(self, key: str, *, latest: bool, return_future: bool) -> Any:
            async def found() -> ValueWithExpiration[Any] | None:
                await self.answers.wait()
                found: ValueWithExpiration[Any] | None = await get(key, latest=latest, return_future=return_future)
                return found

            get = super().get
            return found()

    async def test() -> None:
        dht = HangingDHT()
        dht.answers.set()
        first, second = enter(dht, "A", 0), enter(dht, "B", 1)
        await first.join(0)
        await second.join(0)
        dht.answers.clear()
        first._read_at -= REFRESH_S
        started = time.monotonic()
        assert len((await first.at_round(0, local_step=0)).members) == 1  # the last that it knows
        assert 0.1 <= time.monotonic() - started < 1.0
        started = time.monotonic()
        await first.at_round(1, local_step=0)  # and not a second time
        assert time.monotonic() - started < 0.1
        dht.answers.set()

        async def has_come() -> bool:
            return len(first.view.members) == 2

        await until(has_come)

    asyncio.run(test())
