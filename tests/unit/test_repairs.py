"""The defects of hivemind that ray_gossip mends, and the mends."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
from hivemind import DecentralizedAverager
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID, RoutingTable
from hivemind.dht.storage import DHTLocalStorage
from hivemind.p2p import P2P, PeerID
from hivemind.p2p.p2p_daemon_bindings.control import ControlClient
from hivemind.p2p.p2p_daemon_bindings.utils import write_unsigned_varint
from hivemind.proto import averaging_pb2, dht_pb2, p2pd_pb2
from hivemind.utils import get_dht_time, timed_storage
from hivemind.utils.timed_storage import TimedStorage

from ray_gossip.hive import repairs
from ray_gossip.hive.repairs import EndsItsRounds


class Pipe:
    """Takes what is written, for a reader."""

    def __init__(self) -> None:
        self.reader = asyncio.StreamReader()

    def write(self, data: bytes) -> None:
        self.reader.feed_data(data)

    async def drain(self) -> None:
        pass


async def answer(pipe: Any, call_id: Any) -> None:
    response = p2pd_pb2.PersistentConnectionResponse(
        callId=call_id.bytes, callUnaryResponse=p2pd_pb2.CallUnaryResponse(response=b"answer")
    )
    payload = response.SerializeToString()
    await write_unsigned_varint(pipe, len(payload))
    pipe.write(payload)


async def late_answer_then_another(pending: dict[Any, Any] | None) -> Any:
    """What becomes of a call that waits when the answer to a call that was given up arrives first."""
    client: Any = ControlClient(None, _initialized_with_create=True)
    client._read_task = client._write_task = None  # it is never started
    if pending is not None:
        client._pending_calls = pending
    pipe, given_up, waiting = Pipe(), uuid4(), uuid4()
    for call_id in (given_up, waiting):
        client._pending_calls[call_id] = asyncio.get_running_loop().create_future()
    client._pending_calls[given_up].cancel()
    await answer(pipe, given_up)
    await answer(pipe, waiting)
    pipe.reader.feed_eof()
    await client._read_from_persistent_conn(pipe.reader)
    return client._pending_calls[waiting].result()


def test_an_answer_that_comes_too_late_does_not_deafen_the_process() -> None:
    assert asyncio.run(late_answer_then_another(None)) == b"answer"


def test_hivemind_alone_still_needs_the_mend() -> None:
    with pytest.raises(asyncio.InvalidStateError):
        asyncio.run(late_answer_then_another({}))


class Averager:
    """In two groups: with one it averages, the other has not begun."""

    client_mode, prefix, _p2p = False, "run", None

    def __init__(self) -> None:
        self.told: list[str] = []
        begun, waiting = asyncio.Future[Any](), asyncio.Future[Any]()
        begun.set_result(self)
        self._running_groups = {b"begun": begun, b"waiting": waiting}

    def finalize(self, *, cancel: bool) -> None:
        self.told.append("groupmates")

    async def remove_p2p_handlers(self, p2p: None, *, namespace: str) -> None:
        self.told.append("daemon")


async def told_at_the_end(shutdown: Any) -> list[str]:
    averager = Averager()
    await shutdown(averager, 1.0)
    return averager.told


def test_an_averager_that_ends_in_an_all_reduce_tells_its_groupmates_and_the_daemon() -> None:
    assert asyncio.run(told_at_the_end(EndsItsRounds._shutdown)) == ["groupmates", "daemon"]


def test_hivemind_alone_still_ends_with_an_error() -> None:
    with pytest.raises(AttributeError):
        asyncio.run(told_at_the_end(DecentralizedAverager._shutdown))


@dataclass
class Protocol:
    """What a DHT knows of others."""

    routing_table: RoutingTable = field(default_factory=lambda: RoutingTable(DHTID.generate(), 20, 5))
    storage: dict[Any, Any] = field(default_factory=dict)

    async def call_ping(self, peer_id: PeerID) -> None:
        pass

    def neighbours(self) -> set[PeerID]:
        return {peer for _, peer in self.routing_table.get_nearest_neighbors(DHTID.generate(), k=5)}


async def met_by_a_stranger_of_many_ids(update: Any) -> tuple[set[PeerID], Protocol]:
    protocol, others = Protocol(), [PeerID(bytes([number]) * 34) for number in range(4)]
    for peer_id in others:
        await update(protocol, DHTID.generate(), peer_id)
    for _ in range(5000):
        await update(protocol, DHTID.generate(), PeerID(b"stranger" * 4))
    await asyncio.sleep(0)
    return {*others}, protocol


def test_a_stranger_of_many_ids_crowds_nobody_out_of_the_dht() -> None:
    others, protocol = asyncio.run(met_by_a_stranger_of_many_ids(DHTProtocol.update_routing_table))
    for _ in range(100):
        assert others < protocol.neighbours()


def test_in_hivemind_alone_it_crowds_out_all_others() -> None:
    others, protocol = asyncio.run(met_by_a_stranger_of_many_ids(repairs._original_update))
    assert any(not others & protocol.neighbours() for _ in range(100))


def test_a_peer_that_starts_again_is_known_by_its_new_id_and_nobody_takes_it() -> None:
    async def test() -> None:
        protocol, peer, thief = Protocol(), PeerID(b"a" * 34), PeerID(b"b" * 34)
        old, new = DHTID.generate(), DHTID.generate()
        for node_id, peer_id in ((old, peer), (new, peer), (new, thief)):
            await DHTProtocol.update_routing_table(protocol, node_id, peer_id)
        assert protocol.routing_table.get(peer_id=peer) == new
        assert protocol.routing_table.get(node_id=new) == peer
        assert protocol.routing_table.get(node_id=old) is None
        await DHTProtocol.update_routing_table(protocol, new, peer, responded=False)  # it answers no more
        await DHTProtocol.update_routing_table(protocol, None, thief, responded=False)
        assert protocol.neighbours() == set()

    asyncio.run(test())


def test_a_record_that_comes_again_and_again_leaves_one_line() -> None:
    storage = DHTLocalStorage()
    key, other, now = DHTID.generate(), DHTID.generate(), get_dht_time()
    assert storage.store(other, b"", now + 5.0)
    for number in range(10_000):
        assert storage.store(key, b"", now + 1000.0 + number, subkey=b"subkey")
        assert not storage.store(key, b"", now + 500.0, subkey=b"subkey")
    (entries, _), lines = storage.get(key), len(storage.expiration_heap)
    assert len(entries.expiration_heap) < 300
    assert lines < 300
    assert storage.top()[0] == other, "the lines are in order"


@pytest.mark.parametrize("is_mended", [True, False])
def test_what_has_expired_under_a_key_goes_though_nobody_asks_for_the_key(
    is_mended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_mended:
        monkeypatch.setattr(DHTLocalStorage, "store_subkey", repairs._original_store_subkey)
    clock = [1000.0]
    monkeypatch.setattr(timed_storage, "get_dht_time", lambda: clock[0])
    monkeypatch.setattr(repairs, "monotonic", lambda: clock[0])
    storage, key = DHTLocalStorage(), DHTID.generate()
    storage.store(key, b"", 2000.0, subkey=b"holds")
    for number in range(800):
        storage.store(key, b"", 1003.0, subkey=b"%d" % number)
    clock[0] = 1010.0
    storage.store(DHTID.generate(), b"", 2000.0, subkey=b"of another key")
    assert len(storage.data[key].value.data) == (1 if is_mended else 801)


@pytest.mark.parametrize("is_mended", [True, False])
def test_an_earlier_declaration_sent_once_more_does_not_end_the_later_one(
    is_mended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_mended:
        monkeypatch.setattr(TimedStorage, "store", repairs._original_store)
    clock = [1000.0]
    monkeypatch.setattr(timed_storage, "get_dht_time", lambda: clock[0])
    storage = DHTLocalStorage()
    key = DHTID.generate()
    assert storage.store(key, b"later", 1015.0, subkey=b"peer")
    assert not storage.store(key, b"earlier", 1001.0, subkey=b"peer")
    clock[0] = 1002.0
    entries, _ = storage.get(key)
    assert (b"peer" in entries) is is_mended


class Asking:
    """What a search of the DHT needs of a protocol, and one node that answers it."""

    bucket_size, wait_timeout = 20, 3.0
    node_info = dht_pb2.NodeInfo()

    def __init__(self, answer: dht_pb2.FindResponse) -> None:
        self.rpc_semaphore, self._answer = asyncio.Semaphore(), answer

    def get_stub(self, peer: PeerID) -> Any:
        return self

    async def rpc_find(self, request: dht_pb2.FindRequest, timeout: float) -> dht_pb2.FindResponse:
        return self._answer


KEY = DHTID.generate()
NAMES = [(DHTID.generate(), PeerID(b"%d" % number)) for number in range(200)]
MANY = dht_pb2.FindResult(
    type=dht_pb2.NOT_FOUND,
    nearest_node_ids=[node.to_bytes() for node, _ in NAMES],
    nearest_peer_ids=[peer.to_bytes() for _, peer in NAMES],
)


class AskingWithCare(Asking):
    def get_stub(self, peer: PeerID) -> Any:
        return repairs._Asks(self, self.bucket_size)


def found(build: type[Asking]) -> dict[DHTID, Any]:
    async def asked() -> dict[DHTID, Any]:
        asking: Any = build(dht_pb2.FindResponse(results=[MANY]))
        return await DHTProtocol.call_find(asking, PeerID(b"other"), [KEY]) or {}

    return asyncio.run(asked())


def test_of_an_answer_that_names_many_nodes_as_many_are_taken_as_were_asked_for() -> None:
    assert found(AskingWithCare) == {KEY: (None, dict(NAMES[:20]))}


def test_in_hivemind_alone_all_are() -> None:
    assert {key: len(nearest) for key, (_, nearest) in found(Asking).items()} == {KEY: 200}


def test_a_message_that_is_announced_as_endless_ends_its_stream() -> None:
    async def test() -> None:
        whole, endless = asyncio.StreamReader(), asyncio.StreamReader()
        whole.feed_data(P2P.MESSAGE_MARKER + (4).to_bytes(P2P.HEADER_LEN, P2P.BYTEORDER) + b"\x12\x02ab")
        message, _ = await P2P.receive_protobuf(averaging_pb2.JoinRequest, whole)
        assert message.ByteSize() == 4
        endless.feed_data(P2P.MESSAGE_MARKER + (2**40).to_bytes(P2P.HEADER_LEN, P2P.BYTEORDER) + b"x" * 1000)
        with pytest.raises(ValueError, match="1,099,511,627,776 bytes is announced"):
            await asyncio.wait_for(P2P.receive_protobuf(averaging_pb2.JoinRequest, endless), 5.0)

    asyncio.run(test())
