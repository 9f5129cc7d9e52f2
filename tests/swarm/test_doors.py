"""Who knows an address and no secret gets no answer from any door of a peer; the swarm is told once, and goes on.
`benchmarks/stranger.py` tries more doors, more often, and with tokens that were recorded."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgpack
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID
from hivemind.p2p import P2P, PeerID
from hivemind.proto import averaging_pb2, dht_pb2

from ray_gossip.gossip.guests import pack
from ray_gossip.hive import quiet_hivemind
from ray_gossip.hive.averager import GossipAverager
from ray_gossip.records import Notice
from ray_gossip.secret_file import TEXT
from ray_gossip.testing import GossipPeer, RemotePeer, start_swarm
from tests.swarm.swarms import blocking, gossip, let_in

SIZE, ANSWER_S, TOLD_S = 1000, 10.0, 60.0
RECORD = pack(Notice(peer_index=7, wall_time=0.0, text="a stranger was here"))


class Knocker:
    """A libp2p node that knows a peer's address, and a secret, if any."""

    def __init__(self, addresses: Sequence[str], secret: str | None) -> None:
        quiet_hivemind()
        self._loop = asyncio.new_event_loop()
        self._callee = PeerID.from_base58(addresses[0].rpartition("/")[2])
        self._p2p = self._loop.run_until_complete(P2P.create(initial_peers=list(addresses)))
        if secret is not None:
            let_in(self._p2p, secret)

    def name(self) -> str:
        return str(self._p2p.peer_id.to_base58())

    def knock(self) -> list[str]:
        """The doors that let it in."""
        return [name for name, door in DOORS.items() if self._loop.run_until_complete(self._is_let_in(door))]

    async def _is_let_in(self, door: Door) -> bool:
        try:
            return bool(await asyncio.wait_for(door(self._p2p, self._callee), ANSWER_S))
        except Exception:  # whatever libp2p makes of it: there was no answer
            return False


Door = Callable[[P2P, PeerID], Awaitable[Any]]


async def get(p2p: P2P, callee: PeerID) -> Any:
    node = dht_pb2.NodeInfo(node_id=DHTID.generate().to_bytes())
    stub = super(DHTProtocol, DHTProtocol).get_stub(p2p, callee)
    return await stub.rpc_find(dht_pb2.FindRequest(keys=[DHTID.generate("test.members").to_bytes()], peer=node))


async def tell(p2p: P2P, callee: PeerID) -> Any:
    stub = GossipAverager.get_stub(p2p, callee, namespace="test")
    return await stub.rpc_tell(averaging_pb2.JoinRequest(gather=msgpack.packb([RECORD]))) is not None


async def download(p2p: P2P, callee: PeerID) -> Any:
    stub = GossipAverager.get_stub(p2p, callee, namespace="test")
    return [part async for part in await stub.rpc_download_state(averaging_pb2.DownloadRequest())]


DOORS: dict[str, Door] = {"get": get, "tell": tell, "download": download}


def knocks(addresses: Sequence[str], secret: str | None) -> tuple[str, list[str]]:
    stranger = RemotePeer(Knocker, addresses, secret)
    try:
        stranger.receive()
        return stranger.call(Knocker.name), stranger.call(Knocker.knock)
    finally:
        stranger.close()


def notices(peer: GossipPeer) -> list[str]:
    return list(peer.network.notices)


def test_a_stranger_gets_no_answer_and_a_member_does() -> None:
    secret = os.environ[TEXT]  # of all swarms of the tests
    with start_swarm(blocking(2), SIZE) as peers:
        assert {ended.report.outcome for ended in peers.all(gossip)} == {"averaged"}
        addresses = peers[0].call(GossipPeer.multiaddrs)
        names = []
        for kind in (None, secrets.token_hex(32)):
            name, opened = knocks(addresses, kind)
            assert opened == []
            names.append(name)
        assert {ended.report.outcome for ended in peers.all(gossip)} == {"averaged"}
        _, opened = knocks(addresses, secret)
        assert opened == [*DOORS]
        deadline, told = time.monotonic() + TOLD_S, list[str]()
        while not told and time.monotonic() < deadline:
            peers.all(gossip)
            told = [notice for notice in peers[0].call(notices) if "was refused" in notice]
        assert len(told) == 1
        assert told[0].startswith(f"peer {names[0]} was refused: it shows no proof that it belongs to this run; ")
