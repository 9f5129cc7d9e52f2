"""What does a peer cost the others, the network and the driver, by the number of peers?

Peers whose local step takes a fixed time and no processor, as on a GPU, with default settings; all on this machine.

    peers     local steps a second of each, against no communication; seconds of a round; bytes a second of each beside
              the parameters themselves (DHT, calls, streams), counted by the kernel on the loopback interface, on which
              nothing else must be busy meanwhile; seconds of processor a second of each, with all that belongs to it
    driver    seconds of processor a second, of `ray-gossip train` with as many actors

    python benchmarks/scaling.py                       2, 4, 8 and 16 peers: about 8 minutes on two cores
    python benchmarks/scaling.py --peers 2 4 --seconds 15 --no_driver

Holds when 8 peers keep 0.97 of their local steps, and one of 8 peers costs the driver at most twice what one of 2 does.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import psutil
from harness import (
    MARK,
    START_S,
    Pace,
    SteppingPeer,
    all_at_once,
    conclude,
    left_of,
    new_mark,
    print_table,
    start_peers,
)

from ray_gossip.config import parse
from ray_gossip.testing import RemotePeer, processes_of

STEP_S, SIZE, WAIT_S, LOOK_S = 0.5, 1_000_000, 120.0, 0.5
KEPT, TIMES = 0.97, 2.0


def processor_s(processes: Iterable[psutil.Process]) -> float:
    """So far. What has ended meanwhile does not count."""
    total = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def train(peers: Sequence[RemotePeer], number: int, gossip: dict[str, Any], seconds: float) -> dict[str, float]:
    """Let all train, and count."""
    config = parse({"swarm": {"num_peers": number}, "gossip": gossip})
    all_at_once(peers, SteppingPeer.open, config, f"scaling-{bool(gossip)}", SIZE, wait_s=START_S + 5.0 * number)
    mine = [process for peer in peers for process in processes_of(peer.process.pid or 0)]
    sent, used = psutil.net_io_counters(pernic=True)["lo"].bytes_sent, processor_s(mine)
    for peer in peers:
        peer.send(SteppingPeer.train, STEP_S, seconds)
    paces: list[Pace] = [peer.receive(seconds + WAIT_S) for peer in peers]
    sent, used = psutil.net_io_counters(pernic=True)["lo"].bytes_sent - sent, processor_s(mine) - used
    all_at_once(peers, SteppingPeer.close_engine, wait_s=START_S)
    reports = [report for pace in paces for report in pace.reports]
    parameters = sum(report.bytes_sent for report in reports)
    return {
        "steps_per_s": statistics.fmean(pace.steps_per_s for pace in paces),
        "averaged": sum(report.outcome == "averaged" for report in reports) / max(1, len(reports)),
        "round_s": statistics.median(r.matchmaking_s + r.allreduce_s for r in reports) if reports else 0.0,
        "control_bytes_per_s": (sent - parameters) / seconds / number,
        "processor": used / seconds / number,
    }


def driver(number: int, seconds: float) -> float:
    """Seconds of processor a second of the driver, once all actors train."""
    mark = new_mark()
    with tempfile.TemporaryDirectory() as folder:
        events = Path(folder) / "run" / "events.jsonl"
        words = [
            "train",
            "--run-dir",
            str(events.parent),
            "model.factory=paced:build",
            f"model.args={{step_s: {STEP_S}}}",
        ]
        words += [f"swarm.num_peers={number}", "swarm.cpus_per_peer=0.1", "train.local_steps=1000000"]
        process = subprocess.Popen(
            [sys.executable, "-m", "ray_gossip.cli", *words, "train.eval_every=1000000"],
            cwd=Path(__file__).parent,
            env={**os.environ, MARK: mark, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            deadline = time.monotonic() + START_S + 5.0 * number
            while len(_training(events)) < number:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{len(_training(events))} of {number} actors train")
                time.sleep(LOOK_S)
            own = [psutil.Process(process.pid)]
            before, started = processor_s(own), time.monotonic()
            time.sleep(seconds)
            return (processor_s(own) - before) / (time.monotonic() - started)
        finally:
            process.terminate()
            process.wait(WAIT_S)
            if left := left_of(mark):
                raise RuntimeError(f"processes are left: {', '.join(left)}")


def _training(events: Path) -> set[int]:
    """Peers that have told of a local step."""
    if not events.exists():
        return set()
    lines = events.read_text().rpartition("\n")[0].splitlines()
    return {each["peer_index"] for each in map(json.loads, lines) if each["event"] == "Progress" and each["local_step"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--no_driver", action="store_true", help="leave out what needs Ray")
    options = parser.parse_args()
    found: dict[int, dict[str, float]] = {}
    for number in options.peers:
        with start_peers(SteppingPeer, number) as peers:
            alone = train(peers, number, {"group_size": 1}, options.seconds)
            found[number] = train(peers, number, {}, options.seconds)
        found[number]["of_none"] = found[number]["steps_per_s"] / alone["steps_per_s"]
        if not options.no_driver:
            found[number]["driver"] = driver(number, options.seconds)
    keys = ["of_none", "averaged", "round_s", "control_bytes_per_s", "processor"]
    header = ["peers", "steps, of none", "averaged", "round s", "control bytes/s", "processor s/s", "of the driver"]
    rows = [
        [number, *(each[key] for key in keys), each["driver"] / number if "driver" in each else "-"]
        for number, each in found.items()
    ]
    title = f"of each peer; local steps of {STEP_S:g} s, {SIZE:,} parameters, a round every {20 * STEP_S:g} s"
    print_table(title, header, rows)
    failures = [
        f"{number} peers keep {each['of_none']:.3f} of their local steps"
        for number, each in found.items()
        if number <= 8 and each["of_none"] < KEPT
    ]
    if not options.no_driver and {2, 8} <= found.keys():
        few, many = (found[number]["driver"] / number for number in (2, 8))
        if many > TIMES * few:
            failures.append(f"a peer of 8 costs the driver {many:.3f} s/s, one of 2 {few:.3f}")
    return conclude({"peers": found}, failures)


if __name__ == "__main__":
    sys.exit(main())
