"""What do malformed messages at every door cost a swarm?

Four real peers with local steps of a fixed time average every second. First they are left alone. Then a stranger that
speaks libp2p sends what nobody can understand to each of their doors: calls and streams of the DHT and of the averager.
Of every four messages one is random bytes; one is a message of the right form whose contents are random; one is a
message of ours with some fields replaced by anything; one is a valid message with numbers, lengths and names beyond all
bounds. Streams also announce endless messages, stop in the middle, and never begin.

Wanted: no round lost, the swarm keeps 0.97 of its local steps, its processes' memory stays flat, and nothing is
printed.

    python benchmarks/malformed.py                 10,000 messages at each door
    python benchmarks/malformed.py --messages 200  to try it
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgpack
from beside import RUN_ID, WAIT_S, Member, Summed, start_members, turns, while_they_train
from harness import all_at_once, conclude, print_table
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID
from hivemind.p2p import P2P, PeerID
from hivemind.proto import averaging_pb2, dht_pb2, runtime_pb2
from hivemind.utils import get_dht_time

from ray_gossip.config import parse
from ray_gossip.hive import quiet_hivemind
from ray_gossip.hive.averager import GossipAverager
from ray_gossip.hive.membership import members_key
from ray_gossip.testing import RemotePeer, processes_of

NUM_PEERS, SIZE, STEP_S, H = 4, 100_000, 0.05, 20
QUIET_S, ANSWER_S = 60.0, 3.0
CALLS_AT_ONCE, STREAMS_AT_ONCE = 8, 32  # a stream stays open for a while
STEPS, GROWTH_MB = 0.97, 30.0
CONFIG = parse({"swarm": {"num_peers": NUM_PEERS}, "gossip": {"group_size": NUM_PEERS, "steps": H}})

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


class Stranger:
    """A libp2p node of its own, which knows the addresses of the members."""

    def __init__(self, multiaddrs: Sequence[str]) -> None:
        quiet_hivemind()
        self._loop, self._source = asyncio.new_event_loop(), random.Random(0)
        self._callees = [PeerID.from_base58(address.rpartition("/")[2]) for address in multiaddrs]
        self._p2p = self._loop.run_until_complete(P2P.create(initial_peers=list(multiaddrs)))

    def send(self, door: str, count: int) -> float:
        """Returns the seconds that it took."""
        started = time.monotonic()
        self._loop.run_until_complete(self._send(door, count))
        return time.monotonic() - started

    async def _send(self, door: str, count: int) -> None:
        at_once = asyncio.Semaphore(CALLS_AT_ONCE if door in CALLS else STREAMS_AT_ONCE)

        async def once(number: int) -> None:
            callee = self._callees[number % len(self._callees)]
            async with at_once:
                with contextlib.suppress(Exception):
                    await asyncio.wait_for(self._one(door, callee), ANSWER_S)

        await asyncio.gather(*map(once, range(count)))

    async def _one(self, door: str, callee: PeerID) -> None:
        name, make = CALLS[door] if door in CALLS else STREAMS[door]
        wire = self._wire(make)
        if door in CALLS:
            await self._p2p._client.call_unary_handler(callee, name, wire)
            return
        _, reader, writer = await self._p2p._client.stream_open(callee, [name])
        try:
            header = self._source.choice([len(wire), len(wire), len(wire), 2**63, len(wire) + 100])
            marker = self._source.choice([P2P.MESSAGE_MARKER, P2P.MESSAGE_MARKER, P2P.ERROR_MARKER, b"\xff"])
            if self._source.random() < 0.9:  # else it says nothing at all
                writer.write(marker + header.to_bytes(P2P.HEADER_LEN, P2P.BYTEORDER) + wire)
                await writer.drain()
            await asyncio.wait_for(reader.read(1), 0.2)
        finally:
            writer.close()

    def _wire(self, make: Make) -> bytes:
        if self._source.random() < 0.25:
            return self._source.randbytes(self._source.randrange(3000))
        wire: bytes = make(self._source).SerializeToString()
        return wire


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=10_000, help="at each door")
    options = parser.parse_args()
    members: list[RemotePeer] = []
    stranger: RemotePeer | None = None
    with tempfile.TemporaryFile("w+") as heard:
        own = os.dup(2)
        os.dup2(heard.fileno(), 2)  # what the peers print
        try:
            addresses = start_members(CONFIG, members, size=SIZE, step_s=STEP_S)
            quiet = turns(members, QUIET_S)
            stranger = RemotePeer(Stranger, addresses)
            stranger.receive(WAIT_S)
            rows, sent, before = [], [], [_megabytes(member) for member in members]
            for door in (*CALLS, *STREAMS):

                def knock(door: str = door) -> float:
                    assert stranger is not None
                    stranger.send(Stranger.send, door, options.messages)
                    took: float = stranger.receive(WAIT_S + options.messages * ANSWER_S / CALLS_AT_ONCE)
                    return took

                took, disturbed = while_they_train(members, knock)
                sent += disturbed
                found = Summed.of(disturbed)
                rows.append([door, options.messages, took, found.steps_per_s, found.averaged])
            after = [_megabytes(member) for member in members]
            all_at_once(members, Member.close, wait_s=WAIT_S)
        finally:
            os.dup2(own, 2)
            for each in (*([stranger] if stranger is not None else []), *members):
                each.close()
        heard.seek(0)
        printed = heard.read()
    return _conclude(options.messages, rows, Summed.of(quiet), Summed.of(sent), before, after, printed)


def _megabytes(member: RemotePeer) -> float:
    """Of all processes of a peer."""
    return float(sum(each.memory_full_info().uss for each in processes_of(member.process.pid or 0)) / 1e6)


def _conclude(
    count: int,
    rows: Sequence[Sequence[Any]],
    quiet: Summed,
    sent: Summed,
    before: Sequence[float],
    after: Sequence[float],
    printed: str,
) -> int:
    print_table(
        f"{NUM_PEERS} peers, a local step {STEP_S:g} s, a round every {H * STEP_S:g} s; undisturbed "
        f"{quiet.steps_per_s:.3g} local steps/s, {quiet.averaged:.3f} averaged",
        ["door", "messages", "seconds", "local steps/s of a peer", "rounds averaged"],
        rows,
    )
    growth = max(late - early for early, late in zip(before, after, strict=True))
    print(
        f"\nmemory of a peer: {max(before):.0f} MB before, {max(after):.0f} MB after; printed: {len(printed)} letters"
    )
    failures = []
    if sent.averaged < 1.0:
        failures.append(f"{1 - sent.averaged:.4f} of the rounds did not average: {sent.causes[:2]}")
    if sent.steps_per_s < STEPS * quiet.steps_per_s:
        failures.append(f"the swarm kept {sent.steps_per_s / quiet.steps_per_s:.3f} of its local steps")
    if growth > GROWTH_MB:
        failures.append(f"a peer's memory grew by {growth:.0f} MB")
    if printed:
        failures.append(f"the peers printed: {printed[:500]}")
    return conclude(
        {
            "benchmark": "malformed",
            "messages": count * len(rows),
            "steps_kept": sent.steps_per_s / quiet.steps_per_s,
            "averaged": sent.averaged,
            "averaged_quiet": quiet.averaged,
            "growth_mb": growth,
            "printed": len(printed),
        },
        failures,
    )


if __name__ == "__main__":
    sys.exit(main())
