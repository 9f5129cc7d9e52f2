"""Does a swarm go on for ever? Many rounds in a row on real peers: none may fail, and no process may grow.

Eight peers average a vector of 250,000 numbers, 1 MB, in blocking rounds of groups of four. Every so often all their
processes (training, sidecar, DHT, libp2p daemon) are looked at: resident memory (proportional, so that shared pages
count once) and open files. Allocators give all free memory back at once here: else they keep more or less of the
buffers of past rounds, 8 MB up and down. The first half is for caches to fill (a host remembers ended meetings for a
minute); what grows afterwards, grows for ever.

With --kills, rounds are not counted, but sidecars, DHT processes and daemons are killed one after the other, each on
another peer, in the middle of local steps. Wanted: each peer averages again within 10 s, no local step waits for that,
and the training processes, which are all that goes on for ever, do not grow.

    python benchmarks/endurance.py                800 rounds: two minutes on two cores
    python benchmarks/endurance.py --rounds 9999  as long as you like; with 200 the caches still fill
    python benchmarks/endurance.py --kills 200    about 20 minutes
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from harness import BenchmarkPeer, all_at_once, conclude, print_table, start_peers

from ray_gossip.config import Config, parse
from ray_gossip.records import RoundReport
from ray_gossip.testing import VectorState

NUM_PEERS = 8
SIZE = 250_000
WAIT_S = 180.0
NUM_LOOKS = 8
MAX_GROWTH = 0.05  # of a process's memory, from half of the rounds on
MAX_GROWTH_MB = 4.0  # allocators keep a few pages more or less
MAX_MORE_FILES = 4


KINDS = ("sidecar", "DHT", "p2pd")
STEP_S, H = 0.05, 20
TURN_S = 6.0  # from one kill to the next
HEALED_S = 10.0
LONGEST_STEP_S = 1.0


@dataclass(frozen=True)
class Turn:
    """What one peer did between two kills."""

    reports: list[RoundReport]
    longest_s: float  # local step
    notices: list[str]


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
        pids = {"training": os.getpid(), **self.network_pids()}
        return {name: (_megabytes(pid), len(list(Path(f"/proc/{pid}/fd").iterdir()))) for name, pid in pids.items()}

    def network_pids(self) -> dict[str, int]:
        """Of the present sidecar, or of the next one where it was just killed, and what it has forked."""
        self.network.wait_until_back(HEALED_S)
        sidecar = psutil.Process(self.network.pid)
        below = sorted(sidecar.children(recursive=True), key=lambda process: process.name() == "p2pd")
        return dict(zip(KINDS, [process.pid for process in (sidecar, *below)], strict=True))

    def turn(self, seconds: float) -> Turn:
        """Local steps of a fixed time."""
        reports: list[RoundReport] = []
        longest_s, ends_at = 0.0, time.monotonic() + seconds
        while (started := time.monotonic()) < ends_at:
            time.sleep(STEP_S)
            self.rounds_begun += 1
            reports += self.engine.after_step(self.rounds_begun)
            longest_s = max(longest_s, time.monotonic() - started)
        notices, self.engine.notices[:] = list(self.engine.notices), []
        return Turn(reports, longest_s, notices)


_NAMES = ("training", *KINDS)


def _megabytes(pid: int) -> float:
    with contextlib.suppress(PermissionError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1e3
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=800)
    arguments.add_argument("--kills", type=int)
    options = arguments.parse_args()
    os.environ["MALLOC_TRIM_THRESHOLD_"] = "0"  # read by each process that is started from here
    return count_rounds(options.rounds) if options.kills is None else count_kills(options.kills)


def count_rounds(num_rounds: int) -> int:
    """Rounds in a row; the exit code."""
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
    growth = _growth(looks, _NAMES)
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


def count_kills(num_kills: int) -> int:
    """One process after the other; the exit code."""
    config = parse({"swarm": {"num_peers": NUM_PEERS}, "gossip": {"steps": H}})
    kills: list[tuple[float, int, str]] = []  # wall time, peer, kind
    turns: list[list[Turn]] = []
    looks: list[tuple[int, list[dict[str, tuple[float, int]]]]] = []
    seen: set[int] = set()
    with start_peers(VectorPeer, NUM_PEERS) as peers:
        all_at_once(peers, VectorPeer.open, config, wait_s=WAIT_S)
        all_at_once(peers, VectorPeer.turn, TURN_S, wait_s=WAIT_S)
        for number in range(num_kills):
            victim, kind = number % NUM_PEERS, KINDS[number // NUM_PEERS % len(KINDS)]
            pids = peers[victim].call(VectorPeer.network_pids)
            seen |= set(pids.values())
            for peer in peers:
                peer.send(VectorPeer.turn, TURN_S)
            time.sleep(1.0)
            kills.append((time.time(), victim, kind))
            os.kill(pids[kind], signal.SIGKILL)
            turns.append([peer.receive(WAIT_S) for peer in peers])
            if (number + 1) * NUM_LOOKS % num_kills < NUM_LOOKS:
                looks.append((number + 1, all_at_once(peers, VectorPeer.look, wait_s=WAIT_S)))
        turns.append(all_at_once(peers, VectorPeer.turn, HEALED_S, wait_s=WAIT_S))
        all_at_once(peers, VectorPeer.close_engine, wait_s=WAIT_S)
    reports = [[report for turn in turns for report in turn[peer].reports] for peer in range(NUM_PEERS)]
    healed: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for killed_at, victim, kind in kills:
        averaged = [each for each in reports[victim] if each.outcome == "averaged" and _began(each) > killed_at]
        healed[kind].append(averaged[0].wall_time - killed_at if averaged else math.inf)
    rows = [[kind, len(took), statistics.median(took), max(took)] for kind, took in healed.items() if took]
    print_table("killed with SIGKILL", ["process", "kills", "s until it averages again", "at most"], rows)
    memory = [
        [done, *(sum(peer["training"][what] for peer in of_peers) / NUM_PEERS for what in (0, 1))]
        for done, of_peers in looks
    ]
    print_table("training processes, mean", ["kills", "megabytes", "open files"], memory)
    told = [notice for turn in turns for each in turn for notice in each.notices]
    longest_s = max(each.longest_s for turn in turns for each in turn)
    left = [pid for pid in seen if psutil.pid_exists(pid)]
    print(f"\nlongest local step {longest_s:.2f} s; {len(told)} notices, as: {told[-1] if told else None}")
    failures = [f"after a {kind} was killed, a peer took {max(took):.1f} s" for kind, took in healed.items()
                if took and max(took) > HEALED_S]  # fmt: skip
    failures += [f"a local step took {longest_s:.2f} s"] if longest_s > LONGEST_STEP_S else []
    failures += [f"{len(told)} kills were told, of {num_kills}"] if len(told) != num_kills else []
    failures += [f"{len(left)} processes are left"] if left else []
    failures += [f"peer {peer} grew: {what}" for peer, _, what in _growth(looks, ["training"])]
    return conclude(
        {"kills": num_kills, "peers": NUM_PEERS, "healed_s": healed, "longest_step_s": longest_s, "training": memory},
        failures,
    )


def _began(report: RoundReport) -> float:
    return report.wall_time - report.matchmaking_s - report.allreduce_s


def _growth(
    looks: list[tuple[int, list[dict[str, tuple[float, int]]]]], names: Sequence[str]
) -> Iterator[tuple[int, str, str]]:
    """Peer, process and what grew, from half of the rounds to the end."""
    _, early = looks[(len(looks) - 1) // 2]
    _, late = looks[-1]
    for peer in range(NUM_PEERS):
        for name in names:
            (before_mb, before_files), (after_mb, after_files) = early[peer][name], late[peer][name]
            if after_mb - before_mb > max(MAX_GROWTH_MB, MAX_GROWTH * before_mb):
                yield peer, name, f"{before_mb:.1f} to {after_mb:.1f} MB"
            if after_files - before_files > MAX_MORE_FILES:
                yield peer, name, f"{before_files} to {after_files} open files"


if __name__ == "__main__":
    sys.exit(main())
