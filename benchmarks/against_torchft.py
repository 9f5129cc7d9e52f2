"""Two that outlive their parts, in the same storm: `ray-gossip chaos`, and torchft's LocalSGD with gloo.

The same network, data, local steps (a fixed time and no processor), interval and plan of faults: processes are killed
(-9) and stopped, at the same moments. Each is first left alone for as long. torchft replaces nobody: a loop here starts
a replica that has died again at once, and kills one that has been stopped for 5 s, as our driver does. What has no
counterpart there (a network process, a libp2p daemon) is not hit.

    uv pip install --target /tmp/torchft torchft==0.2.0           its own folder: it wants newer packages than Ray's
    PYTHONPATH=/tmp/torchft python benchmarks/against_torchft.py  12 of each, four times 5 minutes, 125 faults an hour

Nothing is wanted of it: the table says how both did.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import chaos
import psutil
from harness import conclude, print_table

STEPS = 20  # local steps from one synchronisation to the next, as our default
STOPPED_S = 5.0
TIMEOUT_S = 10.0  # of torchft's operations; its default of 60 s would hold all up for that long
JOIN_S, HEARTBEAT_S = 5.0, 5.0  # a little more than an interval, so that those who come back are waited for once
POLL_S = 0.1
START_S = 300.0


@dataclass(frozen=True)
class Hit:
    at_s: float
    kind: str  # kill or stop
    peer: int


def plan_of(num_peers: int, *, minutes: float, rate: float, seed: int) -> list[Hit]:
    dice, hits, at_s = random.Random(seed), list[Hit](), 0.0
    while (at_s := at_s + dice.expovariate(rate / 3600)) < 60 * minutes:
        hits.append(Hit(at_s, dice.choice(("kill", "stop")), dice.randrange(num_peers)))
    return hits


@dataclass
class Figures:
    samples_per_s: float
    participation: float  # of the replicas that are there, in a synchronisation
    loss: float
    back_s: list[float] = field(default_factory=list)  # from a fault to the victim's next synchronisation


class Replicas:
    """Of torchft, and whoever starts them again."""

    def __init__(self, num_replicas: int, folder: Path, *, step_s: float, lighthouse: str) -> None:
        self._folder, self._step_s, self._lighthouse = folder, step_s, lighthouse
        self._processes = {rank: self._start(rank) for rank in range(num_replicas)}
        self._stopped_at: dict[int, float] = {}

    def _start(self, rank: int) -> subprocess.Popen[bytes]:
        script = str(Path(__file__).with_name("torchft_replica.py"))
        words = ["--rank", str(rank), "--log", str(self.log_of(rank)), "--step_s", str(self._step_s)]
        with (self._folder / f"stderr-{rank}").open("ab") as errors:
            return subprocess.Popen(
                [sys.executable, script, *words, "--steps", str(STEPS), "--timeout_s", str(TIMEOUT_S)],
                env={**os.environ, "TORCHFT_LIGHTHOUSE": self._lighthouse, "PYTHONPATH": os.pathsep.join(sys.path)},
                stdout=errors,
                stderr=errors,
            )

    def log_of(self, rank: int) -> Path:
        return self._folder / f"replica-{rank}.jsonl"

    def lines(self, rank: int) -> list[dict[str, Any]]:
        path = self.log_of(rank)
        whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
        return [json.loads(line) for line in whole.splitlines()]

    def look(self) -> None:
        """Start again those that have died; kill those that are stopped."""
        for rank, process in self._processes.items():
            since = self._stopped_at.get(rank)
            if since is not None and time.time() - since > STOPPED_S:
                process.kill()
                process.wait()
            if process.poll() is not None:
                self._stopped_at.pop(rank, None)
                self._processes[rank] = self._start(rank)

    def is_up(self, rank: int) -> bool:
        """Its present process has synchronised."""
        began = psutil.Process(self._processes[rank].pid).create_time()
        return rank not in self._stopped_at and any(
            line["at"] > began and line["has_synchronised"] for line in self.lines(rank)
        )

    def hit(self, hit: Hit) -> None:
        process = self._processes[hit.peer]
        process.send_signal(signal.SIGKILL if hit.kind == "kill" else signal.SIGSTOP)
        if hit.kind == "stop":
            self._stopped_at[hit.peer] = time.time()

    def end(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()


def torchft(num_replicas: int, plan: Sequence[Hit], *, minutes: float, step_s: float) -> Figures:
    from torchft.coordination import LighthouseServer

    lighthouse = LighthouseServer(
        bind="[::]:0",
        min_replicas=2,
        join_timeout_ms=int(1000 * JOIN_S),
        quorum_tick_ms=100,
        heartbeat_timeout_ms=int(1000 * HEARTBEAT_S),
    )
    address = f"http://localhost:{lighthouse.address().rpartition(':')[2]}"
    with tempfile.TemporaryDirectory() as folder:
        replicas = Replicas(num_replicas, Path(folder), step_s=step_s, lighthouse=address)
        try:
            return _measured(replicas, num_replicas, plan, seconds=60 * minutes)
        finally:
            replicas.end()
            lighthouse.shutdown()


def _measured(replicas: Replicas, num_replicas: int, plan: Sequence[Hit], *, seconds: float) -> Figures:
    deadline = time.monotonic() + START_S
    while not all(replicas.is_up(rank) for rank in range(num_replicas)):
        if time.monotonic() > deadline:
            raise SystemExit(f"not every replica of torchft has synchronised within {START_S:g} s")
        replicas.look()
        time.sleep(POLL_S)
    began, left, happened = time.time(), list(plan), list[tuple[float, int]]()
    while time.time() < began + seconds:
        for hit in list(left):
            if time.time() >= began + hit.at_s and replicas.is_up(hit.peer):
                left.remove(hit)
                replicas.hit(hit)
                happened.append((time.time(), hit.peer))
        replicas.look()
        time.sleep(POLL_S)
    lines = {rank: replicas.lines(rank) for rank in range(num_replicas)}
    inside = [line for each in lines.values() for line in each if began <= line["at"] <= began + seconds]
    synchronised = [line for line in inside if line["has_synchronised"]]
    back = [
        next((line["at"] - at for line in lines[rank] if line["at"] > at + 1.0 and line["has_synchronised"]), None)
        for at, rank in happened
    ]
    return Figures(
        samples_per_s=sum(line["samples"] for line in inside) / seconds,
        participation=statistics.fmean(line["participants"] / num_replicas for line in synchronised),
        loss=statistics.fmean(each[-1]["loss"] for each in lines.values()),
        back_s=[each for each in back if each is not None],
    )


def ours(num_peers: int, plan: Sequence[Hit], *, minutes: float, step_s: float) -> Figures:
    hits = ", ".join(f"{{kind: {hit.kind}, peer: {hit.peer}, at_s: {hit.at_s:.1f}}}" for hit in plan)
    words = ["--rate", "0", f"faults.plan=[{hits}]", f"gossip.steps={STEPS}"]
    outcome = chaos.run(num_peers, *words, minutes=minutes, step_s=step_s)
    recovery = outcome.summary["recovery"]  # None where nothing was hit
    rounds = [event for event in outcome.events if event["event"] == "RoundReport"]
    hit_at = [(event["wall_time"], event["peer_index"]) for event in outcome.events if event["event"] == "Fault"]
    back = [next((each["wall_time"] - at for each in rounds if _is_back(each, at, peer)), None) for at, peer in hit_at]
    return Figures(
        samples_per_s=outcome.samples_per_s(60 * minutes),
        participation=recovery["participation"] if recovery else outcome.averaged,
        loss=statistics.fmean(outcome.losses),
        back_s=[each for each in back if each is not None],
    )


def _is_back(report: dict[str, Any], at: float, peer: int) -> bool:
    return bool(report["peer_index"] == peer and report["wall_time"] > at + 1.0 and report["outcome"] == "averaged")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=12)
    parser.add_argument("--minutes", type=float, default=5.0, help="of each of the four runs")
    parser.add_argument("--rate", type=float, default=125.0, help="faults an hour")
    parser.add_argument("--step_s", type=float, default=0.2, help="duration of a local step")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    plan = plan_of(options.peers, minutes=options.minutes, rate=options.rate, seed=options.seed)
    rows, found = [], dict[str, Any]()
    for name, run in (("ray_gossip", ours), ("torchft", torchft)):
        quiet, storm = (run(options.peers, hits, minutes=options.minutes, step_s=options.step_s) for hits in ([], plan))
        ratio, back = storm.samples_per_s / quiet.samples_per_s, sorted(storm.back_s)
        median, last = (statistics.median(back), back[-1]) if back else (None, None)
        rows.append(
            [name, quiet.samples_per_s, storm.samples_per_s, ratio, storm.participation, median, last, len(back)]
        )
        found[name] = {
            "samples_per_s_quiet": quiet.samples_per_s,
            "samples_per_s": storm.samples_per_s,
            "throughput": ratio,
            "participation_quiet": quiet.participation,
            "participation": storm.participation,
            "back_median_s": median,
            "back_most_s": last,
            "back": len(back),
            "loss_quiet": quiet.loss,
            "loss": storm.loss,
        }
    header = ["", "samples/s alone", "in the storm", "ratio", "take part", "back, median s", "at most", "victims back"]
    print_table(f"{options.peers} peers, {len(plan)} faults in {options.minutes:g} minutes", header, rows)
    return conclude({"peers": options.peers, "minutes": options.minutes, "faults": len(plan), **found}, [])


if __name__ == "__main__":
    sys.exit(main())
