"""What does a swarm cost before its first local step, and in memory?

`ray-gossip train` of the digits on a Ray of this machine's own, several times: seconds until the first local step of
any peer, and the memory of all that a peer needs beside the driver and Ray itself (actor, sidecar, DHT, libp2p daemon).
Memory is proportional (PSS), so that shared pages count once; the largest sum of a run.

With and without `swarm.preload`, in turn, and beside them as many actors of Ray that import torch and hivemind and do
nothing (`bare_actors.py`), with Ray's own start. Wanted, with default settings: at most 1.3 times their time, and at
most 300 MB a peer beside its training process's own.

    python benchmarks/start_up.py              8 peers, 3 runs of each: about 8 minutes on two cores
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from pathlib import Path
from typing import Any

from harness import conclude, print_table

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
MARK = "RAY_GOSSIP_BENCHMARK"
RAYS_OWN = ("gcs_server", "raylet", "ray/dashboard", "ray/_private", "ray::IDLE", "log_monitor")
POLL_S = 0.5
RUN_S = 300.0
TIMES, MEGABYTES = 1.3, 300.0


def megabytes(mark: str, driver: int) -> dict[str, float]:
    """By kind of process: peers', Ray's, the driver."""
    found: defaultdict[str, float] = defaultdict(float)
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it may end meanwhile
            if f"{MARK}={mark}".encode() not in (folder / "environ").read_bytes():
                continue
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            (line,) = (line for line in (folder / "smaps_rollup").read_text().splitlines() if line.startswith("Pss:"))
            is_rays = any(name in words for name in RAYS_OWN)
            kind = "driver" if int(folder.name) == driver else "Ray" if is_rays else "peers"
            found[kind] += int(line.split()[1]) / 1e3
    return found


def run(num_peers: int, *, preload: bool) -> tuple[float, dict[str, float]]:
    """Seconds to the first step, and megabytes."""
    mark = uuid.uuid4().hex
    with tempfile.TemporaryDirectory() as folder:
        words = ["train", str(CONFIG), f"swarm.num_peers={num_peers}", "train.local_steps=300"]
        words += [f"swarm.preload={str(preload).lower()}"]
        process = subprocess.Popen(
            [sys.executable, "-m", "ray_gossip.cli", *words, "--run-dir", f"{folder}/run", "--json"],
            env={**os.environ, MARK: mark, "PYTHONPATH": os.pathsep.join(sys.path[1:])},
            stdout=subprocess.DEVNULL,
        )
        most: dict[str, float] = {}
        deadline = time.monotonic() + RUN_S
        while process.poll() is None:
            if time.monotonic() > deadline:
                process.kill()
                raise TimeoutError(f"the run did not end within {RUN_S:g} s")
            for kind, now in megabytes(mark, process.pid).items():
                most[kind] = max(most.get(kind, 0.0), now)
            time.sleep(POLL_S)
        if process.returncode:
            raise RuntimeError(f"the run ended with {process.returncode}")
        summary = json.loads(Path(folder, "run", "summary.json").read_text())
    return summary["time_to_first_step_s"], most


def bare(num_actors: int) -> tuple[float, float]:
    """Seconds until all have imported, and megabytes of each."""
    mark = uuid.uuid4().hex
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("bare_actors.py")), str(num_actors)],
        env={**os.environ, MARK: mark},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    said = process.stdout.readline()
    seconds = time.monotonic() - started
    found = megabytes(mark, process.pid)
    process.stdin.close()
    if said != "ready\n" or process.wait(RUN_S):
        raise RuntimeError(f"bare actors said {said!r}")
    return seconds, found["peers"] / num_actors


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    # in turn, so that what else the machine does falls on both
    runs, idle = [], []
    for _ in range(options.repeats):
        runs += [(preload, *run(options.peers, preload=preload)) for preload in (True, False)]
        idle.append(bare(options.peers))
    rows: list[list[Any]] = []
    figures: dict[str, Any] = {}
    for preload in (True, False):
        of_kind = [(first_s, most) for is_so, first_s, most in runs if is_so == preload]
        rows += [
            [preload, first_s, most["peers"] / options.peers, most["Ray"], most["driver"]] for first_s, most in of_kind
        ]
        figures["preload" if preload else "without"] = {
            "first_step_s": statistics.median(first_s for first_s, _ in of_kind),
            "megabytes_a_peer": statistics.median(most["peers"] for _, most in of_kind) / options.peers,
        }
    header = ["swarm.preload", "s to the first step", "MB a peer", "MB of Ray", "MB of the driver"]
    print_table(f"{options.peers} peers", header, rows)
    bare_s, bare_mb = (statistics.median(each) for each in zip(*idle, strict=True))
    print_table("bare actors", ["s until all have imported", "MB an actor"], [[*each] for each in idle])
    by_default = figures["preload"]
    times = by_default["first_step_s"] / bare_s
    failures = []
    if times > TIMES:
        failures.append(f"the first step takes {times:.2f} times as long as bare actors")
    if by_default["megabytes_a_peer"] > MEGABYTES:
        failures.append(f"a peer has {by_default['megabytes_a_peer']:.0f} MB")
    figures["bare"] = {"ready_s": bare_s, "megabytes_an_actor": bare_mb, "times": times}
    return conclude({"peers": options.peers, **figures}, failures)


if __name__ == "__main__":
    sys.exit(main())
