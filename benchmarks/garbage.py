"""What nobody can understand, for every door of a peer: `malformed.py` sends it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgpack
from beside import RUN_ID
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID
from hivemind.proto import averaging_pb2, dht_pb2, runtime_pb2
from hivemind.utils import get_dht_time

from ray_gossip.hive.averager import GossipAverager
from ray_gossip.hive.membership import members_key

Make = Callable[[random.Random], Any]  # a message of some protobuf


def anything(source: random.Random, depth: int = 3) -> Any:
    """A plain value, as a stranger might put it where another is expected."""
    kinds: list[Callable[[], Any]] = [
        lambda: None,
        lambda: source.random() < 0.5,
        lambda: source.choice([0, -1, 2**31, 2**63, 2**64 - 1, -(2**63), source.getrandbits(40)]),
        lambda: source.choice([0.0, float("nan"), float("inf"), -1e300, source.gauss(0, 1e6)]),
        lambda: source.choice(["", "x" * source.randrange(5000), "\x1b[2J", "\u0000", "../../etc/passwd"]),
        lambda: source.randbytes(source.randrange(2000)),
    ]
    if depth:
        kinds += [
            lambda: [anything(source, depth - 1) for _ in range(source.randrange(5))],
            lambda: {str(i): anything(source, depth - 1) for i in range(source.randrange(4))},
        ]
    return source.choice(kinds)()


def of_the_right_form(*ours: Any) -> Make:
    """The contents of a message of ours, with some fields replaced."""

    def make(source: random.Random) -> bytes:
        fields = [anything(source) if source.random() < 0.4 else field for field in ours]
        if source.random() < 0.1:
            fields = [*fields[: source.randrange(len(fields) + 1)], anything(source)]
        packed: bytes = msgpack.packb(fields)
        return packed[: source.randrange(len(packed))] if source.random() < 0.1 else packed

    return make


def packed(source: random.Random) -> bytes:
    wire: bytes = msgpack.packb(anything(source))
    return wire


def contents(source: random.Random, ours: Make) -> bytes:
    made: bytes = source.choice([lambda each: each.randbytes(each.randrange(3000)), packed, ours])(source)
    return made


STAGE = (False, 10**6, 0)
ARRIVING = of_the_right_form(STAGE, ["A", "B"], "", -1, 0.0, 1.0)
ASKING = of_the_right_form(STAGE, True)
RECORD = of_the_right_form(b"\x81\xa5event\xa8Progress", b"\x80")
DECLARED = {"peer_index": 0, "round": 10**9, "local_step": -5, "node": "x", "left": True}


def join_request(ours: Make) -> Make:
    def make(source: random.Random) -> Any:
        return averaging_pb2.JoinRequest(
            schema_hash=source.randbytes(source.randrange(64)),
            expiration=source.choice([0.0, -1.0, float("nan"), float("inf"), get_dht_time() + 5]),
            gather=contents(source, ours),
            group_key="".join(source.choices("abc:.-\u00fc", k=source.randrange(200))),
        )

    return make


def find(source: random.Random) -> Any:
    keys = [source.randbytes(source.choice([0, 1, 20, 20, 20, 500])) for _ in range(source.randrange(20))]
    return dht_pb2.FindRequest(keys=keys, peer=dht_pb2.NodeInfo(node_id=source.randbytes(source.choice([0, 20, 99]))))


def store(source: random.Random) -> Any:
    count = source.randrange(4)
    key = source.choice([members_key(RUN_ID), "ray_gossip.charter", f"{RUN_ID}.indices", "another"])
    value = source.choice([contents(source, ASKING), msgpack.packb(DECLARED | {"round": anything(source, 1)})])
    request = dht_pb2.StoreRequest(
        keys=[DHTID.generate(source=key).to_bytes()] * count,
        subkeys=[source.choice([b"", msgpack.packb(source.randbytes(34)), source.randbytes(9)])] * count,
        values=[value] * count,
        peer=dht_pb2.NodeInfo(node_id=source.randbytes(20)),
    )
    request.expiration_time.extend([source.choice([get_dht_time() + 60, float("nan"), float("inf"), -1.0])] * count)
    request.in_cache.extend([source.random() < 0.5] * source.choice([count, count + 1]))
    return request


def ping(source: random.Random) -> Any:
    return dht_pb2.PingRequest(
        peer=dht_pb2.NodeInfo(node_id=source.randbytes(source.choice([0, 20, 1000]))), validate=source.random() < 0.5
    )


def part(source: random.Random) -> Any:
    tensor = runtime_pb2.Tensor(
        buffer=source.randbytes(source.randrange(2000)),
        size=[source.choice([0, 1, 100, 2**31])] * source.randrange(3),
        dtype=source.choice(["float32", "load", "", "complex64"]),
        compression=source.choice(runtime_pb2.CompressionType.values()),
    )
    return averaging_pb2.AveragingData(
        code=source.choice(averaging_pb2.MessageCode.values()),
        group_id=source.randbytes(20),
        tensor_part=tensor,
        weight=source.choice([1.0, -1.0, float("nan"), float("inf")]),
    )


CALLS: dict[str, tuple[str, Make]] = {
    "ping": (DHTProtocol._get_handle_name(None, "rpc_ping"), ping),
    "find": (DHTProtocol._get_handle_name(None, "rpc_find"), find),
    "store": (DHTProtocol._get_handle_name(None, "rpc_store"), store),
    "meet": (GossipAverager._get_handle_name(RUN_ID, "rpc_meet"), join_request(ARRIVING)),
    "coming": (GossipAverager._get_handle_name(RUN_ID, "rpc_coming"), join_request(ASKING)),
    "tell": (GossipAverager._get_handle_name(RUN_ID, "rpc_tell"), join_request(RECORD)),
}
STREAMS: dict[str, tuple[str, Make]] = {
    "join_group": (GossipAverager._get_handle_name(RUN_ID, "rpc_join_group"), join_request(ASKING)),
    "aggregate": (GossipAverager._get_handle_name(RUN_ID, "rpc_aggregate_part"), part),
    "download": (
        GossipAverager._get_handle_name(RUN_ID, "rpc_download_state"),
        lambda source: averaging_pb2.DownloadRequest(),
    ),
}
