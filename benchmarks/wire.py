"""How close to the wire is a round? The same bytes, averaged in a group, by

    ours        a blocking round of `engine=gossip` on real peers: from when all have met to the last part
    gloo        torch.distributed.all_reduce
    TCP         each process sends as many bytes as an all-reduce must, over loopback sockets, and does nothing else
    memory      one copy of them

Seconds of the slowest, and seconds of processor of all processes that take part, for each all-reduce. An all-reduce in
a group of M must send 2 (M - 1) / M of its bytes, from each.

    python benchmarks/wire.py                        45 MB in a group of 4, 100 and 400 MB in a pair
    python benchmarks/wire.py --sizes 45:4 --rounds 3
    python benchmarks/wire.py --compression fp16     ours only
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
from harness import all_at_once, conclude, print_table

from ray_gossip.config import Config, parse
from ray_gossip.testing import GossipPeer, RemotePeer, processes_of, start_swarm

WAIT_S, CHUNK = 600.0, 2**20
TIMES_GLOO = 3.0


class GlooPeer:
    """One of several processes that all-reduce."""

    def __init__(self, rank: int, world: int, store: str, size: int) -> None:
        torch.set_num_threads(1)
        torch.distributed.init_process_group(
            "gloo",
            store=torch.distributed.FileStore(store, world),  # type: ignore[attr-defined]
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=WAIT_S),
        )
        self._values = torch.randn(size)

    def reduce(self) -> float:
        """Returns the seconds."""
        started = time.monotonic()
        torch.distributed.all_reduce(self._values)
        self._values /= torch.distributed.get_world_size()
        return time.monotonic() - started


class Socket:
    """Sends to the next of a ring, and takes from the one before."""

    def __init__(self, path: str, rank: int, world: int, num_bytes: int) -> None:
        self._folder, self._rank, self._world = Path(path), rank, world
        self._bytes = bytearray(num_bytes)
        listening = socket.create_server(("127.0.0.1", 0))
        (self._folder / f"port-{rank}.fresh").write_text(str(listening.getsockname()[1]))
        (self._folder / f"port-{rank}.fresh").rename(self._folder / f"port-{rank}")
        self._listening = listening

    def connect(self) -> None:
        port = int((self._folder / f"port-{(self._rank + 1) % self._world}").read_text())
        self._to = socket.create_connection(("127.0.0.1", port))
        self._from, _ = self._listening.accept()

    def reduce(self) -> float:
        started, left = time.monotonic(), len(self._bytes)
        sending = threading.Thread(target=self._to.sendall, args=[self._bytes])
        sending.start()
        buffer = memoryview(bytearray(CHUNK))
        while left:
            left -= self._from.recv_into(buffer[: min(CHUNK, left)])
        sending.join()
        return time.monotonic() - started


def reduce_ours(peer: GossipPeer) -> float:
    report = peer.round()
    if report.outcome != "averaged":
        raise RuntimeError(f"{report.outcome}: {report.cause}")
    return report.allreduce_s


@dataclass(frozen=True)
class Cost:
    """Of an all-reduce, medians."""

    seconds: float
    processor_s: float
    daemons_s: float  # of that, of libp2p's daemons


def measure(peers: Sequence[RemotePeer], once: Callable[[Any], float], rounds: int) -> Cost:
    """The first all-reduce is not counted."""
    found: list[tuple[float, float, float]] = []
    for _ in range(1 + rounds):
        before = _processor_s(peers)
        seconds = max(all_at_once(peers, once, wait_s=WAIT_S))
        after = _processor_s(peers)
        found.append((seconds, after["all"] - before["all"], after["p2pd"] - before["p2pd"]))
    return Cost(*(statistics.median(each) for each in zip(*found[1:], strict=True)))


def _processor_s(peers: Sequence[RemotePeer]) -> defaultdict[str, float]:
    """Of all processes of all peers so far, and of their daemons."""
    found: defaultdict[str, float] = defaultdict(float)
    for peer in peers:
        for process in processes_of(peer.process.pid or 0):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                for kind in ("all", process.name()):
                    found[kind] += times.user + times.system
    return found


def ours(size: int, world: int, rounds: int, compression: str) -> Cost:
    gossip = {"group_size": world, "steps": 1, "overlap": False, "compression": compression, "allreduce_s": WAIT_S}
    config: Config = parse({"swarm": {"num_peers": world}, "gossip": gossip})
    with start_swarm(config, size) as peers:
        return measure(peers, reduce_ours, rounds)


def gloo(size: int, world: int, rounds: int) -> Cost:
    with tempfile.TemporaryDirectory() as folder:
        return _of(
            [(GlooPeer, (rank, world, f"{folder}/store", size)) for rank in range(world)], GlooPeer.reduce, rounds
        )


def tcp(size: int, world: int, rounds: int) -> Cost:
    with tempfile.TemporaryDirectory() as folder:
        num_bytes = 4 * size * 2 * (world - 1) // world
        builds = [(Socket, (folder, rank, world, num_bytes)) for rank in range(world)]
        return _of(builds, Socket.reduce, rounds, first=Socket.connect)


def _of(
    builds: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]],
    once: Callable[[Any], float],
    rounds: int,
    *,
    first: Callable[[Any], None] | None = None,
) -> Cost:
    peers: list[RemotePeer] = []
    try:
        for build, arguments in builds:
            peers.append(RemotePeer(build, *arguments))
        for peer in peers:
            peer.receive(WAIT_S)
        if first is not None:
            all_at_once(peers, first, wait_s=WAIT_S)
        return measure(peers, once, rounds)
    finally:
        for peer in peers:
            peer.close()


def memory(size: int) -> float:
    values, out = torch.randn(size), torch.empty(size)
    out.copy_(values)
    started = time.monotonic()
    out.copy_(values)
    return time.monotonic() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["45:4", "100:2", "400:2"], help="megabytes:peers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compression", default="none", choices=["none", "fp16", "int8"])
    options = parser.parse_args()
    rows, figures, failures = [], [], []
    for megabytes, world in (tuple(map(int, each.split(":"))) for each in options.sizes):
        size = megabytes * 1_000_000 // 4
        found = {
            "ours": ours(size, world, options.rounds, options.compression),
            "gloo": gloo(size, world, options.rounds),
            "TCP": tcp(size, world, options.rounds),
        }
        times = found["ours"].seconds / found["gloo"].seconds
        sent = megabytes * 1e6 * 2 * (world - 1)  # by all
        for name, cost in found.items():
            cells = [cost.seconds, cost.processor_s, cost.daemons_s, 1e9 * cost.processor_s / sent]
            rows.append([f"{megabytes} MB, {world} peers", name, *cells])
        rows.append([f"{megabytes} MB", "memory", copied := memory(size), copied, 0.0, 1e3 * copied / megabytes])
        of_each = {name: asdict(cost) for name, cost in found.items()}
        figures.append({"megabytes": megabytes, "peers": world, "times_gloo": times, **of_each})
        if times > TIMES_GLOO:
            failures.append(f"{megabytes} MB among {world} peers take {times:.1f} times as long as with gloo")
    print_table("an all-reduce", ["", "", "s", "processor s", "of daemons", "ns of processor a byte sent"], rows)
    return conclude({"compression": options.compression, "sizes": figures}, failures)


if __name__ == "__main__":
    sys.exit(main())
