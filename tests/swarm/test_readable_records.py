"""A record that nobody can read does not keep others from reading the rest."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import hivemind
import pytest
from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.utils import get_dht_time

from ray_gossip.gossip.seat import Listen
from ray_gossip.hive import guard_forks, quiet_hivemind, start_dht, stop_dht
from ray_gossip.testing import RemotePeer

KEY, GOOD, BAD = "run.members", b"a good one", b"a bad one"
UNREADABLE = {"rubbish": b"\xc1", "an object of hivemind's": b"\xd4\x40\x00", "half": b"\x92\x01"}


class Node:
    def __init__(self, initial_peers: Sequence[str]) -> None:
        guard_forks()
        quiet_hivemind()
        self.dht = start_dht(initial_peers=initial_peers, listen=Listen(), start_s=30.0)

    def addresses(self) -> list[str]:
        return [str(address) for address in self.dht.get_visible_maddrs()]

    def store(self) -> bool:
        return bool(self.dht.store(KEY, subkey=GOOD, value={"round": 3}, expiration_time=get_dht_time() + 60))

    def read(self) -> dict[Any, Any]:
        found = self.dht.get(KEY, latest=True)
        assert found is not None
        return {subkey: entry.value for subkey, entry in found.value.items()}

    def spoil(self, value: bytes) -> bool:
        """Ask everybody to store these bytes, as another program would."""
        return bool(self.dht.run_coroutine(partial(_spoil, value=value)))

    def stop(self) -> None:
        stop_dht(self.dht)


async def _spoil(dht: hivemind.DHT, node: DHTNode, *, value: bytes) -> bool:
    protocol = node.protocol
    answers = [
        await protocol.call_store(peer, [DHTID.generate(source=KEY)], [value], get_dht_time() + 60, subkeys=[BAD])
        for peer in protocol.routing_table.peer_id_to_uid
    ]
    assert answers
    return any(answer is None or any(answer) for answer in answers)


@pytest.mark.parametrize("value", UNREADABLE.values(), ids=UNREADABLE)
def test_it_is_not_stored_and_the_others_are_read(value: bytes) -> None:
    first = RemotePeer(Node, ())
    second: RemotePeer | None = None
    try:
        first.receive()
        assert first.call(Node.store)
        second = RemotePeer(Node, first.call(Node.addresses))
        second.receive()
        assert second.call(Node.spoil, value) is False
        assert first.call(Node.read) == second.call(Node.read) == {GOOD: {"round": 3}}
        second.call(Node.stop)
        first.call(Node.stop)
    finally:
        for each in (first, second):
            if each is not None:
                each.close()
