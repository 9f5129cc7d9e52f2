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
from collections.abc import Sequence
from typing import Any

from beside import WAIT_S, Member, Summed, start_members, turns, while_they_train
from garbage import CALLS, STREAMS, Make
from harness import all_at_once, conclude, print_table
from hivemind.p2p import P2P, PeerID

from ray_gossip.config import parse
from ray_gossip.hive import quiet_hivemind
from ray_gossip.testing import RemotePeer, processes_of

NUM_PEERS, SIZE, STEP_S, H = 4, 100_000, 0.05, 20
QUIET_S, ANSWER_S = 60.0, 3.0
CALLS_AT_ONCE, STREAMS_AT_ONCE = 8, 32  # a stream stays open for a while
STEPS, GROWTH_MB = 0.97, 30.0
CONFIG = parse({"swarm": {"num_peers": NUM_PEERS}, "gossip": {"group_size": NUM_PEERS, "steps": H}})


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
    os.environ["PYTHONWARNINGS"] = "ignore:`torch.jit:FutureWarning"  # of importing hivemind
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
