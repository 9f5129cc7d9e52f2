"""A dictionary that stands for the DHT, and members that use it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from hivemind.p2p import PeerID
from hivemind.utils import ValueWithExpiration, get_dht_time

from ray_gossip.config import Config
from ray_gossip.gossip.charter import Charter
from ray_gossip.gossip.consensus import ConsensusControl
from ray_gossip.gossip.members import Member
from ray_gossip.hive.membership import Membership

DEADLINE_S = 5.0
CHARTER = Charter.of(Config(), run_id="test", has_driver=False)


def peer_id(name: str) -> str:
    return str(PeerID(name.encode()).to_base58())


def member(name: str, peer_index: int = 0, **fields: Any) -> Member:
    return Member(peer_id=peer_id(name), peer_index=peer_index, **fields)


class DictionaryDHT:
    """What Membership asks of a DHT: records with subkeys that expire, one for the whole swarm."""

    def __init__(self) -> None:
        self.records: dict[str, dict[bytes, ValueWithExpiration[Any]]] = {}
        self.num_stores = 0
        self.called: list[str] = []

    def store(self, key: str, value: Any, expiration_time: float, *, return_future: bool, subkey: bytes = b"") -> Any:
        async def stored() -> bool:
            if not subkey:  # the charter
                return True
            self.num_stores += 1
            entries = self.records.setdefault(key, {})
            is_newer = subkey not in entries or entries[subkey].expiration_time < expiration_time
            if is_newer:
                entries[subkey] = ValueWithExpiration(value, expiration_time)
            return is_newer

        return stored()

    def get(self, key: str, *, latest: bool, return_future: bool) -> Any:
        async def found() -> ValueWithExpiration[Any] | None:
            now = get_dht_time()
            living = {k: v for k, v in self.records.get(key, {}).items() if v.expiration_time > now}
            return ValueWithExpiration(living, now) if living else None

        return found()

    def run_coroutine(self, coroutine: partial[Any], *, return_future: bool) -> Any:
        """Nodes that one peer calls by name."""

        async def called() -> None:
            self.called += coroutine.keywords["peer_ids"]

        return called()


def enter(dht: DictionaryDHT, name: str, peer_index: int, control: ConsensusControl | None = None) -> Membership:
    made: Any = Membership
    entered: Membership = made(dht, charter=CHARTER, own=member(name, peer_index), control=control)
    return entered


def stop_renewing(peer: Membership) -> None:
    assert peer._renewing is not None
    peer._renewing.cancel()
    peer._renewing = None


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async def wait() -> None:
        while not await condition():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(wait(), DEADLINE_S)


def yes() -> bool:
    return True
