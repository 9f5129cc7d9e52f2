"""A declaration that nodes of the DHT refuse. A dictionary stands for the DHT."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ray_gossip.hive import membership
from ray_gossip.hive.membership import Membership
from tests.unit.dictionary_dht import DictionaryDHT, enter, until

pytestmark = pytest.mark.timeout(20)
_store = DictionaryDHT.store


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A declaration holds for 0.3 s here."""
    monkeypatch.setattr(membership, "REDECLARE_S", 0.02)
    monkeypatch.setattr(membership, "MEMBER_TTL_S", 0.3)


async def joined() -> Membership:
    peer = enter(DictionaryDHT(), "A", 0)
    await peer.join(0)
    assert not peer.has_expired
    return peer


async def _no() -> bool:
    return False


def refused(*_: Any, **__: Any) -> Any:
    return _no()


def refused_by_the_last(*arguments: Any, **options: Any) -> Any:
    """Another node has it, and hivemind tells what the last one has answered."""

    async def stored() -> bool:
        await _store(*arguments, **options)
        return False

    return stored()


def test_a_declaration_that_the_dht_does_not_take_has_expired_in_time_and_counts_again_once_it_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> None:
        peer = await joined()

        async def has_expired() -> bool:
            return peer.has_expired

        async def counts() -> bool:
            return not peer.has_expired

        monkeypatch.setattr(DictionaryDHT, "store", refused)
        await until(has_expired)
        monkeypatch.setattr(DictionaryDHT, "store", _store)
        await until(counts)

    asyncio.run(test())


def test_a_declaration_that_one_node_refuses_holds_where_another_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        peer = await joined()
        monkeypatch.setattr(DictionaryDHT, "store", refused_by_the_last)
        declared = peer._held_until

        async def holds_by_a_later_one() -> bool:
            await peer.read()
            assert not peer.has_expired
            return peer._held_until > declared + 0.6

        await until(holds_by_a_later_one)

    asyncio.run(test())
