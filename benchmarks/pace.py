"""Does a swarm stay in step, whatever its interval, the speeds of its peers, and what happens to one of them?

Real peers with local steps of a fixed duration and no CPU, as a GPU's would be, with default settings: only the
interval, the group and the schedule are set. In each scenario something is the matter with one of the peers:

    equal     nothing
    near      two of them are 5 % slower
    far       one of them is 3 times slower
    stall     one stands still for two intervals, once
    newcomer  one more joins after a third of the time
    killed    one is killed after a third of the time
    stopped   all processes of one are stopped for 14 s, and go on

Wanted: at least 95 % of the rounds of each slower peer average; nobody else takes less than 0.97 of the local steps
that it takes without communication; after a disturbance nobody is alone for more than 3 rounds in a row. Rounds in
which a peer was scheduled alone (an odd number in pairs) do not count; neither do those of a victim while it is away,
nor those of its partners in pairs until the swarm knows that it has gone. The share of these is shown beside.

    python benchmarks/pace.py                     about 20 minutes on two cores
    python benchmarks/pace.py --intervals 0.3 3   the shorter intervals only
    python benchmarks/pace.py --every             every scenario with every schedule and group: hours
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from harness import Pace, SteppingPeer, conclude, print_table, start_peers

from ray_gossip.config import Config, parse
from ray_gossip.records import RoundReport
from ray_gossip.testing import Peers, RemotePeer, processes_of

SIZE = {0.3: 250_000, 3.0: 1_000_000, 10.0: 1_000_000}  # 13 rounds a second of a million parameters fill two cores
STEPS = {0.3: (0.05, 6), 3.0: (0.1, 30), 10.0: (0.1, 100)}  # interval -> seconds of a local step, H
ROUNDS = {0.3: 120, 3.0: 20, 10.0: 12}  # so many intervals a scenario lasts
AT_ONCE = {0.3: 1, 3.0: 2, 10.0: 2}  # swarms that share the machine
VARIANTS = [("grid", 2), ("random", 2), ("ring", 2), ("grid", 4), ("random", 4), ("ring", 4)]
SCENARIOS = ("equal", "near", "far", "stall", "newcomer", "killed", "stopped")
SPEEDS = {"near": (1.0, 1.05, 1.0, 1.05), "far": (1.0, 1.0, 1.0, 3.0)}
VICTIM, STOPPED_S = 1, 14.0
EXPIRY_S = 16.0  # until a peer that is gone counts no longer
MIN_AVERAGED, MIN_SPEED, MAX_ALONE = 0.95, 0.97, 3
WAIT_S = 120.0

_run_ids = itertools.count()


class PacedPeer(SteppingPeer):
    """A peer with local steps of a fixed duration, one of which may be long."""

    def train_paced(self, fixed_s: float, until: float, stall_at: float, stall_s: float) -> Pace:
        """Local steps until a moment of the common clock; that at `stall_at` takes `stall_s` longer."""
        step_s: list[float] = []
        reports: list[RoundReport] = []
        begun = started = time.monotonic()
        while started < until:
            time.sleep(fixed_s)
            if started <= stall_at < time.monotonic():
                time.sleep(stall_s)
            self.model.step()
            reports += self.engine.after_step(self.first_step + len(step_s) + 1)
            now = time.monotonic()
            step_s.append(now - started)
            started = now
        return Pace(seconds=started - begun, step_s=tuple(step_s), reports=tuple(reports))


@dataclass
class Case:
    """One scenario with one interval, schedule and group size."""

    scenario: str
    interval_s: float
    schedule: str
    group_size: int
    fixed_s: list[float] = field(init=False)  # of each peer

    def __post_init__(self) -> None:
        step_s, self.steps = STEPS[self.interval_s]
        self.fixed_s = [step_s * speed for speed in SPEEDS.get(self.scenario, (1.0,) * 4)]
        self.seconds = max(45.0, ROUNDS[self.interval_s] * self.interval_s)

    @property
    def config(self) -> Config:
        gossip = {"group_size": self.group_size, "schedule": self.schedule, "steps": self.steps}
        return parse({"gossip": gossip, "swarm": {"num_peers": len(self.fixed_s)}})

    @property
    def name(self) -> str:
        return f"{self.interval_s:g} s, {self.scenario}, {self.schedule} of {self.group_size}"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a case has shown."""

    case: Case
    averaged: float  # the least share of a peer's rounds
    meanwhile: float | None  # the same of the rounds while one is away, of the others
    speed: float  # the least share of a peer's own speed, of those that nothing happened to
    alone: int  # most rounds in a row that did not average, of any peer, in all of the case but the victim's absence
    rounds: int
    causes: list[str]


def run(case: Case, peers: Peers, alone_s: dict[float, float]) -> Result:
    """Let a swarm train, do to it what the scenario says, and look what came of it."""
    run_id = f"pace{next(_run_ids)}"
    for peer in peers:
        peer.send(PacedPeer.open, case.config, run_id, SIZE[case.interval_s])
    for peer in peers:
        peer.receive(WAIT_S)
    start = time.monotonic()
    until, event_at = start + case.seconds, start + case.seconds / 3
    stall_s = 2 * case.interval_s if case.scenario == "stall" else 0.0
    for index, (peer, each_s) in enumerate(zip(peers, case.fixed_s, strict=True)):
        peer.send(PacedPeer.train_paced, each_s, until, event_at, stall_s if index == VICTIM else 0.0)
    away = (float("inf"), float("inf"))
    taking_part = list(enumerate(peers))
    fixed_s = list(case.fixed_s)
    time.sleep(max(0.0, event_at - time.monotonic()))
    if case.scenario == "killed":
        peers[VICTIM].process.kill()
        away = (time.time(), time.time() + EXPIRY_S)
        taking_part = [(index, peer) for index, peer in taking_part if index != VICTIM]
    elif case.scenario == "stopped":
        pids = [process.pid for process in processes_of(peers[VICTIM].process.pid)]
        signal_all(pids, signal.SIGSTOP)
        away = (time.time(), time.time() + STOPPED_S + 2.0)
        time.sleep(STOPPED_S)
        signal_all(pids, signal.SIGCONT)
    elif case.scenario == "stall":
        away = (time.time(), time.time() + stall_s + 2.0)
    elif case.scenario == "newcomer":
        newcomer = RemotePeer(PacedPeer, len(peers), peers_addresses(peers))
        newcomer.receive(WAIT_S)
        newcomer.send(PacedPeer.enter, case.config, run_id, SIZE[case.interval_s])
        newcomer.receive(WAIT_S)
        newcomer.send(PacedPeer.train_paced, case.fixed_s[0], until, 0.0, 0.0)
        taking_part.append((len(peers), newcomer))
        fixed_s.append(case.fixed_s[0])
    paces = {index: peer.receive(case.seconds + WAIT_S) for index, peer in taking_part}
    if case.scenario == "newcomer":
        newcomer.close()
    return judge(case, paces, fixed_s, away, alone_s)


def judge(
    case: Case, paces: dict[int, Pace], fixed_s: list[float], away: tuple[float, float], alone_s: dict[float, float]
) -> Result:
    averaged, meanwhile, speeds, longest, causes = [], list[float](), [], 0, list[str]()
    for index, pace in paces.items():
        rounds = [report for report in pace.reports if report.cause != "scheduled alone"]
        counted = [report for report in rounds if not away[0] <= report.wall_time <= away[1] + case.interval_s]
        others = [report for report in rounds if report not in counted and index != VICTIM]
        if others:
            meanwhile.append(sum(report.outcome == "averaged" for report in others) / len(others))
        failed = [report for report in counted if report.outcome != "averaged"]
        averaged.append(1 - len(failed) / max(1, len(counted)))
        causes += [f"peer-{index:02d} round {report.round}: {report.outcome}, {report.cause}" for report in failed]
        longest = max(longest, in_a_row(counted))
        if index != VICTIM or case.scenario not in ("stall", "stopped"):
            speeds.append(alone_s[fixed_s[index]] * pace.steps_per_s)
    return Result(
        case=case,
        averaged=min(averaged),
        meanwhile=min(meanwhile, default=None),
        speed=min(speeds),
        alone=longest,
        rounds=sum(len(pace.reports) for pace in paces.values()),
        causes=causes,
    )


def in_a_row(reports: Sequence[RoundReport]) -> int:
    longest = current = 0
    for report in reports:
        current = 0 if report.outcome == "averaged" else current + 1
        longest = max(longest, current)
    return longest


def signal_all(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        os.kill(pid, number)


_addresses: dict[int, list[str]] = {}


def peers_addresses(peers: Peers) -> list[str]:
    return _addresses[id(peers)]


def measure_alone(peers: Peers, fixed_s: Sequence[float], size: int, seconds: float) -> dict[float, float]:
    """Seconds of a local step without communication, by its fixed part."""
    found: dict[float, float] = {}
    for batch in (fixed_s[i : i + len(peers)] for i in range(0, len(fixed_s), len(peers))):
        config = parse({"gossip": {"group_size": 1}, "swarm": {"num_peers": len(batch)}})
        run_id = f"pace{next(_run_ids)}"
        for peer, _ in zip(peers, batch, strict=False):
            peer.send(PacedPeer.open, config, run_id, size)
        for peer, _ in zip(peers, batch, strict=False):
            peer.receive(WAIT_S)
        until = time.monotonic() + seconds
        for peer, each_s in zip(peers, batch, strict=False):
            peer.send(PacedPeer.train_paced, each_s, until, 0.0, 0.0)
        for peer, each_s in zip(peers, batch, strict=False):
            found[each_s] = 1 / peer.receive(seconds + WAIT_S).steps_per_s
        for peer, _ in zip(peers, batch, strict=False):
            peer.send(PacedPeer.close_engine)
            peer.receive(WAIT_S)
    return found


def cases(intervals: Sequence[float], scenarios: Sequence[str], *, every: bool) -> list[Case]:
    """All that are asked for; without `every`, schedules and groups take turns."""
    chosen = []
    turn = itertools.count()
    for interval_s, scenario in itertools.product(intervals, scenarios):
        variants = VARIANTS if every else [VARIANTS[next(turn) % len(VARIANTS)]]
        chosen += [Case(scenario, interval_s, *variant) for variant in variants]
    return chosen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--intervals", type=float, nargs="+", choices=sorted(STEPS), default=sorted(STEPS))
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=SCENARIOS)
    parser.add_argument("--every", action="store_true", help="every schedule and group size, not in turns")
    options = parser.parse_args()
    wanted = cases(options.intervals, options.scenarios, every=options.every)
    results: list[Result] = []
    alone_s: dict[float, float] = {}
    starting = threading.Lock()

    def run_in_swarm(case: Case) -> Result:
        with starting:
            peers = start_peers(PacedPeer, len(case.fixed_s))
        with peers:
            _addresses[id(peers)] = peers[0].call(PacedPeer.multiaddrs)
            return run(case, peers, alone_s)

    for interval_s in options.intervals:
        chosen = [case for case in wanted if case.interval_s == interval_s]
        with start_peers(PacedPeer, 4) as peers:
            fixed_s = sorted({each for case in chosen for each in case.fixed_s})
            alone_s = measure_alone(peers, fixed_s, SIZE[interval_s], seconds=15.0)
        with ThreadPoolExecutor(AT_ONCE[interval_s]) as pool:
            results += pool.map(run_in_swarm, chosen)
    rows = [
        [
            result.case.name,
            result.rounds,
            f"{result.averaged:.3f}",
            "" if result.meanwhile is None else f"{result.meanwhile:.3f}",
            f"{result.speed:.3f}",
            result.alone,
        ]
        for result in results
    ]
    print_table(
        "Real peers, default settings; each row: the worst of its peers",
        ["case", "rounds", "averaged", "while one is away", "of own speed", "in a row alone"],
        rows,
    )
    failures = []
    for result in results:
        name = result.case.name
        if result.averaged < MIN_AVERAGED:
            failures.append(f"{name}: {result.averaged:.3f} of the rounds averaged: {'; '.join(result.causes[:3])}")
        if result.speed < MIN_SPEED:
            failures.append(f"{name}: a peer kept {result.speed:.3f} of its speed")
        if result.alone > MAX_ALONE:
            failures.append(f"{name}: {result.alone} rounds in a row alone: {'; '.join(result.causes[:3])}")
    figures: list[dict[str, Any]] = [
        {
            "case": each.case.name,
            "averaged": each.averaged,
            "while_one_is_away": each.meanwhile,
            "speed": each.speed,
            "in_a_row_alone": each.alone,
        }
        for each in results
    ]
    return conclude({"benchmark": "pace", "cases": figures}, failures)


if __name__ == "__main__":
    sys.exit(main())
