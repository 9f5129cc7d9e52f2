"""Does a run outlive its parts? A swarm under Ray whose processes are killed and stopped by chance, beside the same one
left alone.

`ray-gossip train` on a Ray of this machine's own, with local steps of fixed duration that take no processor, as on a
GPU, and default settings but for what keeps the test short. In the storm, a random peer is hit every so often, by a
seeded Poisson process: kill -9 of the process of its actor, SIGSTOP of it, kill -9 of its sidecar or of its libp2p
daemon. Wanted: throughput (samples a second, each counted once) at least 0.985 of the quiet run's, at least 0.90 of the
rounds of living peers averaged, victims back within 15 s (median) and 30 s (90th percentile; of
a stopped one from when it is noticed), every victim back, and no process left.

    python benchmarks/chaos.py                                            12 peers, twice 30 minutes, 125 faults an hour
    python benchmarks/chaos.py --peers 4 --minutes 3 --rate 400           to try it
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from harness import conclude, print_table

from ray_gossip.sidecar.nursery import title

KINDS = ("actor", "actor", "stop", "sidecar", "p2pd")  # actors twice as often: they are what preemption takes
MARK = "RAY_GOSSIP_BENCHMARK"
START_S, END_S = 300.0, 120.0
LAST_FAULT_S = 45.0  # before the end, so that its victim can come back
SILENT_S = 10.0
THROUGHPUT, AVERAGED, MEDIAN_S, TAIL_S = 0.985, 0.90, 15.0, 30.0


@dataclass(frozen=True)
class Fault:
    at: float  # seconds since 1970
    peer_index: int
    kind: str


@dataclass
class Outcome:
    """What a run came to."""

    events: list[dict[str, Any]]
    since: float  # of the window in which it was measured
    until: float
    faults: list[Fault] = field(default_factory=list)
    left: list[str] = field(default_factory=list)  # processes

    @property
    def samples_per_s(self) -> float:
        """Of all peers, each sample once."""
        seen = 0
        for marks in self._by_peer("Progress").values():
            inside = [mark["samples"] for mark in marks if self.since <= mark["wall_time"] <= self.until]
            seen += max(inside, default=0) - min(inside, default=0)
        return seen / (self.until - self.since)

    @property
    def outcomes(self) -> Counter[str]:
        """Of rounds, by peer."""
        inside = [each for each in self._of("RoundReport") if self.since <= each["wall_time"] <= self.until]
        return Counter(each["outcome"] for each in inside)

    @property
    def averaged_share(self) -> float:
        return self.outcomes["averaged"] / max(1, self.outcomes.total())

    @property
    def loss(self) -> float:
        """In training, mean over the peers at the end."""
        latest = [marks[-1]["loss"] for marks in self._by_peer("Progress").values()]
        return statistics.fmean(loss for loss in latest if loss is not None)

    def back_after_s(self, fault: Fault) -> float | None:
        """From a fault until its victim takes part again; None: never."""
        later = [
            each for each in self.events if each["wall_time"] > fault.at and each["peer_index"] == fault.peer_index
        ]
        if fault.kind in ("sidecar", "p2pd"):
            back = [
                each for each in later if each["event"] == "Notice" and "another one took its place" in each["text"]
            ]
            back += [each for each in later if each["event"] == "PeerStarted"]  # or the whole peer was hit meanwhile
        else:
            back = [each for each in later if each["event"] == "PeerStarted"]
        since = fault.at
        if fault.kind == "stop":
            noticed = [each["wall_time"] for each in later if each["event"] == "PeerLost"]
            since = noticed[0] if noticed else fault.at
        return min(each["wall_time"] for each in back) - since if back else None

    def _of(self, kind: str) -> list[dict[str, Any]]:
        return [each for each in self.events if each["event"] == kind]

    def _by_peer(self, kind: str) -> Mapping[int, list[dict[str, Any]]]:
        found: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
        for each in self._of(kind):
            found[each["peer_index"]].append(each)
        return found


class Training:
    """`ray-gossip train` in a process of its own; leaving the context stops it in order."""

    def __init__(self, run_dir: Path, *, num_peers: int, step_s: float) -> None:
        self.mark, self._events = uuid.uuid4().hex, run_dir / "events.jsonl"
        words = [
            "model.factory=paced:build",
            f"model.args={{step_s: {step_s}}}",
            f"swarm.num_peers={num_peers}",
            "swarm.cpus_per_peer=0.1",
            f"swarm.silent_s={SILENT_S}",
            "gossip.group_size=4",
            "train.local_steps=1000000000",
            "train.eval_every=1000000000",
            "swarm.stop_s=20",
        ]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ray_gossip.cli", "train", *words, "--run-dir", str(run_dir)],
            cwd=Path(__file__).parent,
            env={**os.environ, MARK: self.mark, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def events(self) -> list[dict[str, Any]]:
        with contextlib.suppress(FileNotFoundError), self._events.open() as file:
            return [json.loads(line) for line in file if line.endswith("\n")]
        return []

    def pids(self) -> dict[int, int]:
        """Of the actors of the peers that take part."""
        found: dict[int, int] = {}
        for each in self.events():
            if each["event"] == "PeerStarted":
                found[each["peer_index"]] = each["pid"]
            elif each["event"] == "PeerLost":
                found.pop(each["peer_index"], None)
        return found

    def wait_until_training(self, num_peers: int) -> None:
        deadline = time.monotonic() + START_S
        while len({each["peer_index"] for each in self.events() if each["event"] == "RoundReport"}) < num_peers:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the swarm did not start")
            time.sleep(1.0)

    def __enter__(self) -> Training:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(END_S)

    def left(self) -> list[str]:
        """Processes of it that have not ended."""
        deadline = time.monotonic() + 10.0
        while (found := list(self._living())) and time.monotonic() < deadline:
            time.sleep(0.5)
        return found

    def _living(self) -> Iterator[str]:
        for process in psutil.process_iter(["name"]):
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    yield f"{process.pid} {process.name()}"


def strike(kind: str, pid: int) -> bool:
    """Hit a peer; False: there was nothing of the kind just then."""
    with contextlib.suppress(ProcessLookupError, psutil.Error):
        if kind in ("actor", "stop"):
            os.kill(pid, signal.SIGKILL if kind == "actor" else signal.SIGSTOP)
            return True
        named = [process for process in psutil.process_iter(["name"]) if process.info["name"] == title(pid)]
        ids = {process.pid for process in named}
        (sidecar,) = [process for process in named if process.ppid() not in ids] or [None]
        if sidecar is not None and kind == "sidecar":
            sidecar.kill()
            return True
        daemons = (
            [] if sidecar is None else [each for each in sidecar.children(recursive=True) if each.name() == "p2pd"]
        )
        for daemon in daemons:
            daemon.kill()
        return bool(daemons)
    return False


def run(num_peers: int, *, minutes: float, rate: float, step_s: float, seed: int) -> Outcome:
    """A run of so many minutes, from when all peers have averaged, with so many faults an hour."""
    dice, faults = random.Random(seed), list[Fault]()
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        with Training(run_dir, num_peers=num_peers, step_s=step_s) as training:
            training.wait_until_training(num_peers)
            since = time.time()
            until = since + 60 * minutes
            while rate and (pause_s := dice.expovariate(rate / 3600)) < until - LAST_FAULT_S - time.time():
                time.sleep(pause_s)
                pids, kind = training.pids(), dice.choice(KINDS)
                if pids and strike(kind, pids[index := dice.choice(sorted(pids))]):
                    faults.append(Fault(time.time(), index, kind))
            time.sleep(max(0.0, until - time.time()))
            events = training.events()
        return Outcome(events, since, until, faults, training.left())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=12)
    parser.add_argument("--minutes", type=float, default=30.0, help="of each of the two runs")
    parser.add_argument("--rate", type=float, default=125.0, help="faults an hour")
    parser.add_argument("--step_s", type=float, default=0.2, help="duration of a local step")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    common = {"minutes": options.minutes, "step_s": options.step_s, "seed": options.seed}
    quiet, storm = (run(options.peers, rate=rate, **common) for rate in (0.0, options.rate))
    back = {fault: storm.back_after_s(fault) for fault in storm.faults}
    rows = []
    for kind in dict.fromkeys(KINDS):
        seconds = sorted(after for fault, after in back.items() if fault.kind == kind and after is not None)
        hit = sum(fault.kind == kind for fault in storm.faults)
        middle = statistics.median(seconds) if seconds else "-"
        rows.append([kind, hit, len(seconds), middle, seconds[-1] if seconds else "-"])
    print_table("what was hit", ["", "times", "back", "median s", "longest s"], rows)
    known = sorted(after for after in back.values() if after is not None)
    figures = {
        "faults": len(storm.faults),
        "faults_per_hour": len(storm.faults) / (options.minutes / 60),
        "back_median_s": statistics.median(known) if known else 0.0,
        "back_p90_s": known[int(0.9 * (len(known) - 1))] if known else 0.0,
        "throughput": storm.samples_per_s / quiet.samples_per_s,
        "averaged_quiet": quiet.averaged_share,
        "averaged": storm.averaged_share,
        "loss_quiet": quiet.loss,
        "loss": storm.loss,
        "rounds": dict(storm.outcomes),
        "left": len(quiet.left) + len(storm.left),
    }
    rows = [["quiet", quiet.samples_per_s, quiet.averaged_share, quiet.loss]]
    rows += [["storm", storm.samples_per_s, storm.averaged_share, storm.loss]]
    print_table(f"{options.peers} peers", ["", "samples/s", "averaged", "loss"], rows)
    failures = []
    if len(known) < len(storm.faults):
        failures.append(f"{len(storm.faults) - len(known)} of {len(storm.faults)} victims did not come back")
    for name, least in (("throughput", THROUGHPUT), ("averaged", AVERAGED)):
        if figures[name] < least:
            failures.append(f"{name} {figures[name]:.3f} is below {least}")
    for name, most in (("back_median_s", MEDIAN_S), ("back_p90_s", TAIL_S)):
        if figures[name] > most:
            failures.append(f"{name} {figures[name]:.1f} is above {most:g}")
    if quiet.left or storm.left:
        failures.append(f"processes are left: {', '.join([*quiet.left, *storm.left])}")
    return conclude(figures, failures)


if __name__ == "__main__":
    sys.exit(main())
