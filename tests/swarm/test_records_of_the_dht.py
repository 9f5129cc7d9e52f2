"""Who stores what nobody can read, what has no end, or in the name of another peer, does not keep others from reading
the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import hivemind
import psutil
import pytest
from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.utils import MSGPackSerializer, get_dht_time

from ray_gossip.gossip.seat import Listen
from ray_gossip.hive import guard_forks, quiet_hivemind, start_dht, stop_dht
from ray_gossip.hive.process import renew_locks
from ray_gossip.testing import RemotePeer

KEY, BAD = "run.members", b"a bad one"
LONG = "run.long"
READABLE, LONG_S = b"\x01", 3600.0
BAD_ONES = {
    "rubbish": (b"\xc1", 60.0),
    "an object of hivemind's": (b"\xd4\x40\x00", 60.0),
    "half": (b"\x92\x01", 60.0),
    "for ever": (READABLE, 1e9),
    "beyond time": (READABLE, math.inf),
}


class Node:
    def __init__(self, initial_peers: Sequence[str], identity_path: Path | None = None) -> None:
        guard_forks()
        renew_locks()  # another test's peer may have been killed with one that all have from the same process
        quiet_hivemind()
        self.dht = start_dht(initial_peers=initial_peers, listen=Listen(identity_path=identity_path), start_s=30.0)

    def name(self) -> bytes:
        return bytes(self.dht.peer_id.to_bytes())

    def addresses(self) -> list[str]:
        return [str(address) for address in self.dht.get_visible_maddrs()]

    def store(self) -> bool:
        expires = get_dht_time() + 60
        return bool(self.dht.store(KEY, subkey=self.name(), value={"round": 3}, expiration_time=expires))

    def store_long(self, num_bytes: int) -> bool:
        expires = get_dht_time() + 60
        return bool(self.dht.store(LONG, subkey=self.name(), value=bytes(num_bytes), expiration_time=expires))

    def read(self) -> dict[Any, Any]:
        found = self.dht.get(KEY, latest=True)
        assert found is not None
        return {subkey: entry.value for subkey, entry in found.value.items()}

    def spoil(self, value: bytes, subkey: bytes | None = BAD, holds_s: float = LONG_S) -> bool:
        """Ask everybody to store these bytes, as another program would."""
        return bool(self.dht.run_coroutine(partial(_spoil, value=value, subkey=subkey, holds_s=holds_s)))

    def flood(self, num_records: int) -> int:
        """Ask everybody to store so many records of 50 KB, each under a name of its own."""
        return int(self.dht.run_coroutine(partial(_flood, num_records=num_records)))

    def megabytes(self) -> float:
        return float(psutil.Process(self.dht.pid).memory_info().rss / 2**20)

    def stop(self) -> None:
        stop_dht(self.dht)


async def _spoil(dht: hivemind.DHT, node: DHTNode, *, value: bytes, subkey: bytes | None, holds_s: float) -> bool:
    protocol, key = node.protocol, DHTID.generate(source=KEY)
    answers = [
        await protocol.call_store(peer, [key], [value], get_dht_time() + holds_s, subkeys=[subkey])
        for peer in protocol.routing_table.peer_id_to_uid
    ]
    assert answers
    return any(answer is None or any(answer) for answer in answers)


async def _flood(dht: hivemind.DHT, node: DHTNode, *, num_records: int) -> int:
    """How many were stored."""
    protocol, key, value = node.protocol, DHTID.generate(source=KEY), MSGPackSerializer.dumps(bytes(50_000))
    stored = 0
    for begin in range(0, num_records, 50):
        subkeys = [b"%d" % number for number in range(begin, begin + 50)]
        expires = [get_dht_time() + 60.0] * 50
        for peer in protocol.routing_table.peer_id_to_uid:
            answer = await protocol.call_store(peer, [key] * 50, [value] * 50, expires, subkeys=subkeys)
            stored += sum(answer or ())
    return stored


@contextmanager
def two_nodes(*identities: Path | None) -> Iterator[tuple[RemotePeer, RemotePeer]]:
    """One that has stored its record, and another one."""
    nodes: list[RemotePeer] = []
    try:
        for identity in identities:
            nodes.append(RemotePeer(Node, nodes[0].call(Node.addresses) if nodes else (), identity))
            nodes[-1].receive()
        assert nodes[0].call(Node.store)
        yield nodes[0], nodes[1]
        for node in reversed(nodes):
            node.call(Node.stop)
    finally:
        for node in nodes:
            node.close()


@pytest.mark.parametrize(("value", "holds_s"), BAD_ONES.values(), ids=BAD_ONES)
def test_what_is_unreadable_or_endless_is_not_stored_and_the_others_are_read(value: bytes, holds_s: float) -> None:
    with two_nodes(None, None) as (first, second):
        assert second.call(Node.spoil, value, BAD, holds_s) is False
        assert second.call(Node.spoil, READABLE) is True, "it would not have been stored anyway"
        assert first.call(Node.read) == second.call(Node.read) == {first.call(Node.name): {"round": 3}, BAD: 1}


def test_a_command_that_is_longer_than_what_a_pipe_holds_is_answered_and_so_is_the_next() -> None:
    """hivemind's DHT reads the first 64 KB, takes the rest for another command, and never answers."""
    with two_nodes(None, None) as (first, second):
        assert first.call(Node.store_long, 60_000)
        for _ in range(3):
            first.call(Node.store_long, 200_000)  # more than others take, see `hive.readable_records`
            assert first.call(Node.store)
        assert second.call(Node.read) == {first.call(Node.name): {"round": 3}}


def test_a_flood_of_records_takes_a_bounded_memory_and_members_renew_theirs() -> None:
    with two_nodes(None, None) as (first, second):
        before = first.call(Node.megabytes)
        stored = second.call(Node.flood, 3000)
        assert 1000 < stored < 2000
        assert first.call(Node.megabytes) - before < 120, "of 150 MB that were sent, twice 64 may be kept"
        assert first.call(Node.store)


def test_nobody_stores_in_the_name_of_another_or_for_all(tmp_path: Path) -> None:
    with two_nodes(tmp_path / "one", tmp_path / "other") as (first, second):
        for name in (first.call(Node.name), None, second.call(Node.name)):  # the last: without its signature
            assert second.call(Node.spoil, READABLE, name) is False
        assert second.call(Node.store)
        both = {each.call(Node.name): {"round": 3} for each in (first, second)}
        assert first.call(Node.read) == second.call(Node.read) == both
