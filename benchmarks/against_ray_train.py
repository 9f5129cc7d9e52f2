"""What a death costs: `ray-gossip train`, and Ray Train's DDP with a checkpoint every 50 steps, killed alike.

The same network, data and local steps (a fixed time and no processor); the same process number is killed (-9) at the
same moments. What is lost are samples that would have been seen at the speed of the undisturbed part: steps that are
done again, and the time in which nobody trains. Wanted: ten times fewer with gossip.

    python benchmarks/against_ray_train.py                        4 of each, 4 kills in 4 minutes: about 10 minutes
    python benchmarks/against_ray_train.py --minutes 2 --kills 2  to try it
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import chaos
import psutil
from harness import MARK, conclude, left_of, living, new_mark, print_table

from ray_gossip.config import Config

EVERY_STEPS, TIMES_FEWER = 50, 10.0
START_S = 180.0
BATCH = Config().data.batch_size


class Training:
    """Ray Train's, in a process of its own."""

    def __init__(self, num_workers: int, folder: Path, *, step_s: float) -> None:
        self._folder, self._mark = folder, new_mark()
        script = str(Path(__file__).with_name("ray_train_script.py"))
        words = ["--workers", str(num_workers), "--folder", str(folder), "--step_s", str(step_s)]
        with (folder / "output").open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, script, *words, "--every_steps", str(EVERY_STEPS)],
                env={**os.environ, MARK: self._mark, "PYTHONPATH": os.pathsep.join(sys.path)},
                stdout=output,
                stderr=output,
            )

    def steps(self) -> list[dict[str, Any]]:
        path = self._folder / "steps.jsonl"
        whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
        return [json.loads(line) for line in whole.splitlines()]

    def kill(self, rank: int) -> None:
        os.kill(int((self._folder / f"pid-{rank}").read_text()), signal.SIGKILL)

    def end(self) -> None:
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=20.0)
        for process in living(self._mark):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        left_of(self._mark)


def ray_train(num_workers: int, kills: Sequence[float], *, seconds: float, step_s: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        training = Training(num_workers, Path(folder), step_s=step_s)
        try:
            deadline = time.monotonic() + START_S
            while not training.steps():
                if time.monotonic() > deadline:
                    raise SystemExit((Path(folder) / "output").read_text()[-2000:])
                time.sleep(0.1)
            began = training.steps()[0]["at"]
            for number, at_s in enumerate(kills):
                time.sleep(max(0.0, began + at_s - time.time()))
                training.kill(number % num_workers)
            time.sleep(max(0.0, began + seconds - time.time()))
            steps = [each for each in training.steps() if each["at"] <= began + seconds]
        finally:
            training.end()
    gaps = [second["at"] - first["at"] for first, second in pairwise(steps)]
    usual_s = statistics.median(gaps)
    lost_steps = seconds / usual_s - steps[-1]["step"]
    again = sum(max(0, first["step"] + 1 - second["step"]) for first, second in pairwise(steps))
    return {
        "samples_per_s": num_workers * BATCH / usual_s,
        "samples_lost": num_workers * BATCH * lost_steps / len(kills),
        "nobody_trains_s": sum(gap for gap in gaps if gap > 20 * usual_s) / len(kills),
        "steps_done_again": again / len(kills),
    }


def ours(num_peers: int, kills: Sequence[float], *, seconds: float, step_s: float) -> dict[str, float]:
    hits = [f"{{kind: kill, peer: {number % num_peers}, at_s: {at_s:.1f}}}" for number, at_s in enumerate(kills)]
    words = ["--rate", "0", f"faults.plan=[{', '.join(hits)}]"]
    outcome = chaos.run(num_peers, *words, minutes=seconds / 60, step_s=step_s)
    marks = sorted(each["wall_time"] for each in outcome.events if each["event"] == "Progress")
    quiet = [second - first for first, second in pairwise(marks)]
    recovery = outcome.summary["recovery"]
    return {
        "samples_per_s": outcome.samples_per_s(seconds),
        "samples_lost": recovery["samples_lost"] / recovery["faults"],
        "nobody_trains_s": sum(gap for gap in quiet if gap > 20 * step_s) / recovery["faults"],
        "steps_done_again": 0.0,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=4.0, help="of each of the two runs")
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--step_s", type=float, default=0.2, help="duration of a local step")
    options = parser.parse_args()
    seconds = 60 * options.minutes
    # not at the same distance from a checkpoint each time
    kills = [seconds * (number + 0.5) / options.kills + 3.7 * number for number in range(options.kills)]
    pace = {"seconds": seconds, "step_s": options.step_s}
    found = {
        "ray_gossip": ours(options.peers, kills, **pace),
        "ray_train": ray_train(options.peers, kills, **pace),
    }
    keys = list(found["ray_train"])
    rows = [[name, *(figures[key] for key in keys)] for name, figures in found.items()]
    print_table("for each kill", ["", *(key.replace("_", " ") for key in keys)], rows)
    fewer = found["ray_train"]["samples_lost"] / max(1.0, found["ray_gossip"]["samples_lost"])
    failures = [] if fewer >= TIMES_FEWER else [f"{fewer:.1f} times fewer samples lost, not {TIMES_FEWER:g}"]
    return conclude({"peers": options.peers, "kills": options.kills, "times_fewer": fewer, **found}, failures)


if __name__ == "__main__":
    sys.exit(main())
