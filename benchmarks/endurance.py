"""Does a swarm run for a night? Hundreds of rounds in a row without one that fails, and nothing that grows.

Eight real peers do blocking rounds back to back, on a grid of pairs. Every peer is four processes: the trainer,
hivemind's DHT, its libp2p daemon (p2pd) and the averager. Of each, resident memory (RSS), open file descriptors and
threads are read at a quarter of the rounds, when caches are warm, and at the end. RSS may differ by a tenth or by
MARGIN_MB, whichever is more: Go's garbage collector in p2pd breathes. What leaks a kilobyte a round stays below that
in 200 rounds, so --rounds 5000 is the test for a long run.

    python benchmarks/endurance.py                  200 rounds, about a minute on two cores
    python benchmarks/endurance.py --rounds 5000    ten minutes and more
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from harness import conclude, print_table

from ray_gossip.config import parse
from ray_gossip.records import RoundReport
from ray_gossip.testing import GossipPeer, Peers, start_swarm

NUM_PEERS = 8
SIZE = 100_000
WAIT_S = 1800.0
MARGIN_MB = 8.0
MARGIN = 0.1
MARGIN_DESCRIPTORS = 4  # streams that are open at the moment of reading
ROLES = ("trainer", "dht", "p2pd", "averager")


@dataclass(frozen=True)
class Usage:
    """What one process holds."""

    rss_mb: float
    descriptors: int
    threads: int


def pids(peer: GossipPeer) -> dict[str, int]:
    """The processes of a peer, by role."""
    trainer, dht, averager = os.getpid(), peer.dht.pid, peer.engine.averager.pid
    (p2pd,) = (int(pid) for pid in Path(f"/proc/{dht}/task/{dht}/children").read_text().split())
    return {"trainer": trainer, "dht": dht, "p2pd": p2pd, "averager": averager}


def rounds(peer: GossipPeer, count: int) -> list[RoundReport]:
    """Blocking rounds, with something new to average in each."""
    reports = []
    for _ in range(count):
        peer.state.values += torch.randn(SIZE)
        reports.append(peer.round())
    return reports


def usage(pid: int) -> Usage:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return Usage(
        rss_mb=int(status["VmRSS"].split()[0]) / 1024,
        descriptors=len(list(Path(f"/proc/{pid}/fd").iterdir())),
        threads=int(status["Threads"]),
    )


def run(peers: Peers, count: int) -> list[RoundReport]:
    for peer in peers:
        peer.send(rounds, count)
    return [report for peer in peers for report in peer.receive(WAIT_S)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200, help="blocking rounds of every peer (default 200)")
    num_rounds = parser.parse_args().rounds
    config = parse(
        {
            "swarm": {"num_peers": NUM_PEERS},
            "gossip": {"group_size": 2, "steps": 1, "overlap": False, "matchmaking_s": 30.0},
        }
    )
    with start_swarm(config, SIZE) as peers:
        processes = {(role, index): pid for index, each in enumerate(peers.all(pids)) for role, pid in each.items()}
        started = time.monotonic()
        reports = run(peers, num_rounds // 4)
        early = {key: usage(pid) for key, pid in processes.items()}
        reports += run(peers, num_rounds - num_rounds // 4)
        late = {key: usage(pid) for key, pid in processes.items()}
        seconds = time.monotonic() - started
    failures = [
        f"peer-{report.peer_index:02d} round {report.round}: {report.outcome}, {report.cause}"
        for report in reports
        if report.outcome != "averaged" or report.cause
    ]
    rows = []
    growth: dict[str, dict[str, float]] = {}
    for role in ROLES:
        of_role = [key for key in processes if key[0] == role]
        before, after = ([usages[key] for key in of_role] for usages in (early, late))
        grown = [(b, a) for b, a in zip(before, after, strict=True)]
        for index, (b, a) in enumerate(grown):
            if a.rss_mb - b.rss_mb > max(MARGIN_MB, MARGIN * b.rss_mb):
                failures.append(f"{role} of peer-{index:02d} grew from {b.rss_mb:.0f} to {a.rss_mb:.0f} MB")
            if a.descriptors - b.descriptors > MARGIN_DESCRIPTORS:
                failures.append(f"{role} of peer-{index:02d}: {b.descriptors} descriptors became {a.descriptors}")
        growth[role] = {
            "rss_mb": max(a.rss_mb for a in after),
            "rss_grown_mb": max(a.rss_mb - b.rss_mb for b, a in grown),
            "descriptors_grown": max(a.descriptors - b.descriptors for b, a in grown),
            "threads_grown": max(a.threads - b.threads for b, a in grown),
        }
        rows.append(
            [
                role,
                *(f"{max(u.rss_mb for u in usages):.0f}" for usages in (before, after)),
                f"{growth[role]['rss_grown_mb']:+.1f}",
                *(max(u.descriptors for u in usages) for usages in (before, after)),
                *(max(u.threads for u in usages) for usages in (before, after)),
            ]
        )
    outcomes = dict(Counter(report.outcome for report in reports))
    print_table(
        f"{NUM_PEERS} peers, largest of each kind of process after {num_rounds // 4} and after {num_rounds} rounds",
        ["process", "RSS MB", "later", "most grown", "descriptors", "later", "threads", "later"],
        rows,
    )
    print(f"{num_rounds / seconds:.1f} rounds per second; rounds of all peers: {outcomes}")
    return conclude(
        {
            "benchmark": "endurance",
            "rounds": num_rounds,
            "outcomes": outcomes,
            "rounds_per_s": num_rounds / seconds,
            "growth": growth,
        },
        failures,
    )


if __name__ == "__main__":
    sys.exit(main())
