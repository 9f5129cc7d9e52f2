"""Every door of a peer, and how one knocks at it: the calls of the DHT, and the averager's calls and streams."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgpack
from beside import RUN_ID
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID
from hivemind.p2p import P2P, PeerID
from hivemind.proto import averaging_pb2, dht_pb2
from hivemind.utils import MSGPackSerializer, get_dht_time

from ray_gossip.gossip.guests import pack
from ray_gossip.hive.averager import GossipAverager
from ray_gossip.records import Notice

Door = Callable[[P2P, PeerID], Awaitable[Any]]
KEY, NODE = DHTID.generate("stranger").to_bytes(), dht_pb2.NodeInfo(node_id=DHTID.generate().to_bytes())
EXPIRES = get_dht_time() + 3600  # the same content each time, for tokens that are repeated
TOLD = pack(Notice(peer_index=100, wall_time=0.0, text="a stranger was here"))
MEETING = msgpack.packb([[False, 10**6, 0], ["nobody"], "", -1, 0.1, 0.1])


def _of_dht(p2p: P2P, callee: PeerID) -> Any:
    return super(DHTProtocol, DHTProtocol).get_stub(p2p, callee)  # its own is of a node


async def _get(p2p: P2P, callee: PeerID) -> None:
    await _of_dht(p2p, callee).rpc_find(dht_pb2.FindRequest(keys=[KEY], peer=NODE))


async def _store(p2p: P2P, callee: PeerID) -> None:
    value = MSGPackSerializer.dumps("a stranger was here")
    request = dht_pb2.StoreRequest(keys=[KEY], subkeys=[DHTProtocol.IS_REGULAR_VALUE], values=[value], peer=NODE)
    request.expiration_time.append(EXPIRES)
    request.in_cache.append(False)
    await _of_dht(p2p, callee).rpc_store(request)


def _of_averager(p2p: P2P, callee: PeerID) -> Any:
    return GossipAverager.get_stub(p2p, callee, namespace=RUN_ID)


async def _meet(p2p: P2P, callee: PeerID) -> None:
    await _of_averager(p2p, callee).rpc_meet(averaging_pb2.JoinRequest(gather=MEETING))


async def _coming(p2p: P2P, callee: PeerID) -> None:
    request = averaging_pb2.JoinRequest(group_key="a key", gather=msgpack.packb([[False, 0, 0], False]))
    await _of_averager(p2p, callee).rpc_coming(request)


async def _tell(p2p: P2P, callee: PeerID) -> None:
    await _of_averager(p2p, callee).rpc_tell(averaging_pb2.JoinRequest(gather=msgpack.packb([TOLD])))


async def _join_group(p2p: P2P, callee: PeerID) -> None:
    request = averaging_pb2.JoinRequest(expiration=get_dht_time() + 10)
    await _first(await _of_averager(p2p, callee).rpc_join_group(request))


async def _aggregate(p2p: P2P, callee: PeerID) -> None:
    async def parts() -> AsyncIterator[averaging_pb2.AveragingData]:
        yield averaging_pb2.AveragingData(code=averaging_pb2.PART_FOR_AVERAGING, group_id=b"a group")

    await _first(await _of_averager(p2p, callee).rpc_aggregate_part(parts()))


async def _download(p2p: P2P, callee: PeerID) -> None:
    await _first(await _of_averager(p2p, callee).rpc_download_state(averaging_pb2.DownloadRequest()))


async def _first(answers: AsyncIterator[Any]) -> None:
    async for _ in answers:
        return
    raise EOFError


DOORS: dict[str, Door] = {
    "get": _get,
    "store": _store,
    "meet": _meet,
    "coming": _coming,
    "tell": _tell,
    "join_group": _join_group,
    "aggregate": _aggregate,
    "download": _download,
}
