"""Does consensus control keep a swarm as close as is asked for, and send less?

Eight real peers with local steps of a fixed duration, each drawn to where no other is drawn, on whatever schedule;
after a fifth of the time their learning rate falls to a twentieth, as in a training that settles. Each schedule runs
twice: with a round whenever one is due, and with `gossip.consensus_target` at twice the largest distance of the first
run. The distance is the true one, of all parameters, over their norm, as the peers begin a round.

Wanted: it stays below the target, and the peers send fewer bytes than without control.

    python benchmarks/consensus.py             about 8 minutes on two cores
    python benchmarks/consensus.py --schedules ring
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from harness import BenchmarkPeer, all_at_once, conclude, print_table, start_peers
from numpy.typing import NDArray

from ray_gossip.config import parse
from ray_gossip.gossip.engine import GossipEngine
from ray_gossip.mixing import consensus_distance
from ray_gossip.records import RoundReport
from ray_gossip.testing import Peers, VectorState

NUM_PEERS, NUM_NODES, SIZE = 8, 2, 1000
SCHEDULES = ("grid", "random", "ring", "local", "all")
STEP_S, H = 0.04, 6
EARLY, RATES = 0.2, (0.01, 0.0005)  # share of the time; what a local step adds, before and after
TARGET = 2.0  # of the largest distance without control
WAIT_S = 120.0

_run_ids = itertools.count()


@dataclass(frozen=True)
class Course:
    """What one peer did: its rounds, and its state as it began each of them."""

    reports: list[RoundReport]
    begun: list[NDArray[np.float32]]


class DrawnPeer(BenchmarkPeer):
    """A peer whose local steps draw it to a place of its own, and jitter."""

    def open(self, schedule: str, target: float | None, run_id: str) -> None:
        self.generator = torch.Generator().manual_seed(self.peer_index)
        self.own = torch.randn(SIZE, generator=self.generator)
        self.state = VectorState(torch.ones(SIZE))
        gossip = {"steps": H, "group_size": 2, "schedule": schedule, "consensus_target": target}
        config = parse({"gossip": gossip, "swarm": {"num_peers": NUM_PEERS}})
        self.open_engine(config, run_id, self.state, SIZE, node=f"node {self.peer_index * NUM_NODES // NUM_PEERS}")

    def train(self, seconds: float) -> Course:
        """Local steps for so many seconds."""
        assert isinstance(self.engine, GossipEngine)
        began = time.monotonic()
        snapshots: dict[int, NDArray[np.float32]] = {}
        reports: list[RoundReport] = []
        for step in itertools.count(1):
            share = (time.monotonic() - began) / seconds
            if share > 1:
                break
            time.sleep(STEP_S)
            jitter = torch.randn(SIZE, generator=self.generator)
            self.state.add_to_state(RATES[share > EARLY] * (self.own + jitter))
            reports += self.engine.after_step(step)
            # as a round begins: of the step at which it began
            snapshots[step] = self.engine.snapshot.values.numpy().copy()
        return Course(reports, [snapshots[report.local_step] for report in reports])


def run(peers: Peers, schedule: str, target: float | None, seconds: float) -> list[Course]:
    all_at_once(peers, DrawnPeer.open, schedule, target, f"consensus{next(_run_ids)}", wait_s=WAIT_S)
    courses: list[Course] = all_at_once(peers, DrawnPeer.train, seconds, wait_s=seconds + WAIT_S)
    all_at_once(peers, DrawnPeer.close_engine, wait_s=WAIT_S)
    return courses


def distances(courses: Sequence[Course]) -> list[float]:
    """Of each round that all peers have begun: the distance over the norm of the parameters."""
    rounds: dict[int, list[NDArray[np.float32]]] = defaultdict(list)
    for course in courses:
        for report, state in zip(course.reports, course.begun, strict=True):
            rounds[report.round].append(state)
    whole = [np.array(states) for states in rounds.values() if len(states) == NUM_PEERS]
    return [consensus_distance(states) / float(np.linalg.norm(states.mean(axis=0))) for states in whole]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=SCHEDULES)
    parser.add_argument("--seconds", type=float, default=40.0, help="of a run")
    options = parser.parse_args()
    rows, figures, failures = [], [], []
    with start_peers(DrawnPeer, NUM_PEERS) as peers:
        for schedule in options.schedules:
            usual = run(peers, schedule, None, options.seconds)
            target = TARGET * max(distances(usual))
            controlled = run(peers, schedule, target, options.seconds)
            sent, saved = (sum(r.bytes_sent for course in each for r in course.reports) for each in (usual, controlled))
            highest, num_rounds = max(distances(controlled)), [len(distances(each)) for each in (usual, controlled)]
            rows.append([schedule, *num_rounds, target, highest, saved / sent])
            figures.append({"schedule": schedule, "highest_over_target": highest / target, "bytes": saved / sent})
            if highest > target:
                failures.append(f"{schedule}: the distance rose to {highest:.3g}, above the target {target:.3g}")
            if saved >= sent:
                failures.append(f"{schedule}: {saved / sent:.2f} of the bytes without control")
    print_table(
        f"{NUM_PEERS} real peers in pairs, a round due every {H} local steps of {STEP_S:g} s",
        ["schedule", "rounds", "with control", "target", "highest distance", "share of bytes"],
        rows,
    )
    return conclude({"benchmark": "consensus", "schedules": figures}, failures)


if __name__ == "__main__":
    sys.exit(main())
