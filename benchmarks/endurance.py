"""Does a swarm go on for ever? Many rounds in a row on real peers: none may fail, and no process may grow.

Eight peers average a vector of 250,000 numbers, 1 MB, in blocking rounds of groups of four. Every so often all their
processes (training, DHT, libp2p daemon, averager) are looked at: resident memory (proportional, so that shared pages
count once) and open files. Before, averagers give their free memory back: the allocator keeps more or less of the
buffers of past rounds, 8 MB up and down. The first half is for caches to fill (a host remembers ended meetings for a
minute); what grows afterwards, grows for ever.

    python benchmarks/endurance.py                800 rounds: two minutes on two cores
    python benchmarks/endurance.py --rounds 9999  as long as you like; with 200 the caches still fill
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from harness import BenchmarkPeer, all_at_once, conclude, print_table, start_peers

from ray_gossip.config import Config, parse
from ray_gossip.hive.averager import GossipAverager
from ray_gossip.records import RoundReport
from ray_gossip.testing import VectorState

NUM_PEERS = 8
SIZE = 250_000
WAIT_S = 180.0
NUM_LOOKS = 8
MAX_GROWTH = 0.05  # of a process's memory, from half of the rounds on
MAX_GROWTH_MB = 4.0  # allocators keep a few pages more or less
MAX_MORE_FILES = 4


async def _give_back(_: GossipAverager) -> None:
    ctypes.CDLL(None).malloc_trim(0)


GossipAverager._give_back = _give_back  # before it forks: it runs the method that it is told by name


class VectorPeer(BenchmarkPeer):
    """A peer whose model is one vector."""

    def open(self, config: Config) -> None:
        self.state = VectorState(torch.randn(SIZE, generator=torch.Generator().manual_seed(self.peer_index)))
        self.rounds_begun = 0
        self.open_engine(config, "endurance", self.state, SIZE)

    def rounds(self, num_rounds: int) -> list[RoundReport]:
        reports = []
        for _ in range(num_rounds):
            self.rounds_begun += 1
            reports += self.engine.after_step(self.rounds_begun)
        return reports

    def look(self) -> dict[str, tuple[float, int]]:
        """Process -> (megabytes, open files), of this peer."""
        engine: Any = self.engine
        engine.averager._call("_give_back").result(timeout=WAIT_S)
        names = dict(zip(_family(os.getpid()), _NAMES, strict=False))
        return {name: (_megabytes(pid), len(list(Path(f"/proc/{pid}/fd").iterdir()))) for pid, name in names.items()}


_NAMES = ("training", "DHT", "p2pd", "averager")


def _family(pid: int) -> Iterator[int]:
    """This process, then all below it, the oldest first."""
    yield pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for child in sorted(map(int, children)):
        yield from _family(child)


def _megabytes(pid: int) -> float:
    with contextlib.suppress(PermissionError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1e3
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=800)
    num_rounds: int = arguments.parse_args().rounds
    config = parse(
        {
            "swarm": {"num_peers": NUM_PEERS},
            "gossip": {"group_size": 4, "steps": 1, "overlap": False, "schedule": "random"},
        }
    )
    outcomes: Counter[str] = Counter()
    causes: Counter[str] = Counter()
    looks: list[tuple[int, list[dict[str, tuple[float, int]]]]] = []
    with start_peers(VectorPeer, NUM_PEERS) as peers:
        all_at_once(peers, VectorPeer.open, config, wait_s=WAIT_S)
        started, done = time.monotonic(), 0
        for look in range(1, NUM_LOOKS + 1):
            until = num_rounds * look // NUM_LOOKS
            for reports in all_at_once(peers, VectorPeer.rounds, until - done, wait_s=WAIT_S + until - done):
                outcomes.update(report.outcome for report in reports)
                causes.update(report.cause for report in reports if report.outcome != "averaged")
            done = until
            looks.append((done, all_at_once(peers, VectorPeer.look, wait_s=WAIT_S)))
        seconds = time.monotonic() - started
    rows: list[list[Any]] = []
    for done, of_peers in looks:
        megabytes = [sum(peer[name][0] for peer in of_peers) / NUM_PEERS for name in _NAMES]
        rows.append([done, *megabytes, sum(peer[name][1] for peer in of_peers for name in _NAMES)])
    print_table(
        f"{NUM_PEERS} peers, megabytes a process (mean over the peers)", ["rounds", *_NAMES, "open files in all"], rows
    )
    print(f"\n{num_rounds} rounds in {seconds:.1f} s: {dict(outcomes)} {dict(causes) or ''}")
    failures = [f"a round was {outcome}" for outcome in outcomes if outcome != "averaged"]
    if outcomes["averaged"] != num_rounds * NUM_PEERS:
        failures.append(f"{outcomes['averaged']} peer-rounds were averaged, not {num_rounds * NUM_PEERS}")
    growth = _growth(looks)
    failures += [f"peer {peer}'s process {name} grew: {what}" for peer, name, what in growth]
    return conclude(
        {
            "rounds": num_rounds,
            "peers": NUM_PEERS,
            "outcomes": dict(outcomes),
            "round_s": seconds / num_rounds,
            "megabytes": {name: [row[1 + i] for row in rows] for i, name in enumerate(_NAMES)},
            "open_files": [row[-1] for row in rows],
        },
        failures,
    )


def _growth(looks: list[tuple[int, list[dict[str, tuple[float, int]]]]]) -> Iterator[tuple[int, str, str]]:
    """Peer, process and what grew, from half of the rounds to the end."""
    _, early = looks[NUM_LOOKS // 2 - 1]
    _, late = looks[-1]
    for peer in range(NUM_PEERS):
        for name in _NAMES:
            (before_mb, before_files), (after_mb, after_files) = early[peer][name], late[peer][name]
            if after_mb - before_mb > max(MAX_GROWTH_MB, MAX_GROWTH * before_mb):
                yield peer, name, f"{before_mb:.1f} to {after_mb:.1f} MB"
            if after_files - before_files > MAX_MORE_FILES:
                yield peer, name, f"{before_files} to {after_files} open files"


if __name__ == "__main__":
    sys.exit(main())
