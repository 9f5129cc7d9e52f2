"""Does an interrupted run end as if nothing had happened? `ray-gossip train`, cut off at random moments by Ctrl-C, by
kill -9 of the driver or by kill -9 of everything, then given once more with --resume; on a Ray of this machine's own.

One peer: wanted is the model of an uninterrupted run, bit for bit. Then a swarm
that comes back with another number of peers each time: wanted are the accuracy of an uninterrupted swarm, as far as
its peers differ in that, and that every sample is counted once: what a run goes on with is what its checkpoint says,
and that is what the part before began with and what each of its peers has done since.

    python benchmarks/interruptions.py                       10 interruptions of one peer, 10 of 4, 3, 5, ... peers
    python benchmarks/interruptions.py --interruptions 3     to try it
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from harness import MARK, conclude, left_of, living, new_mark, print_table

from ray_gossip.config import Config

BATCH = Config().data.batch_size
SIZES = (4, 3, 5)
WAYS = ("Ctrl-C", "kill -9 of the driver", "kill -9 of everything")
EARLIEST_S, LATEST_S = 1.0, 6.0  # from the first local step of a part to its interruption
START_S, END_S = 120.0, 60.0
WORSE = 0.02  # accuracy


class Part:
    """One start of a run, until it ends or is interrupted."""

    def __init__(self, run_dir: Path, words: Sequence[str]) -> None:
        self.run_dir, self._mark = run_dir, new_mark()
        self._num_earlier = len(self._all())
        self._process = subprocess.Popen(
            [*(sys.executable, "-m", "ray_gossip.cli", "train", "--resume", "--run-dir", str(run_dir)), *words],
            cwd=Path(__file__).parent,
            env={**os.environ, MARK: self._mark, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self._all()[self._num_earlier :] if event["event"] == kind]

    def finish(self) -> None:
        if code := self._process.wait(timeout=START_S + END_S + 300.0):
            raise SystemExit(f"ray-gossip train ended with {code}")

    def interrupt(self, way: str, after_s: float) -> list[str]:
        """Returns the processes that are left of it."""
        deadline = time.monotonic() + START_S
        while not self.events("Progress"):
            if time.monotonic() > deadline or self._process.poll() is not None:
                self._process.kill()
                raise SystemExit(f"no local step within {START_S:g} s")
            time.sleep(0.1)
        time.sleep(after_s)
        if way == "Ctrl-C":
            os.killpg(self._process.pid, signal.SIGINT)
        elif way == "kill -9 of the driver":
            self._process.kill()
        else:
            all_of_them = list(living(self._mark))
            for number in (signal.SIGSTOP, signal.SIGKILL):  # else some see others die
                for process in all_of_them:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.send_signal(number)
        self._process.wait(timeout=END_S)
        return left_of(self._mark)

    def _all(self) -> list[dict[str, Any]]:
        path = self.run_dir / "events.jsonl"
        whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
        return [json.loads(line) for line in whole.splitlines()]


def manifest_of(run_dir: Path) -> dict[str, Any] | None:
    """Of the latest checkpoint."""
    found = sorted((run_dir / "checkpoints").glob("*/manifest.json"))
    return None if not found else json.loads(found[-1].read_text())


def miscounted(part: Part, manifest: dict[str, Any] | None) -> str:
    """How what the checkpoint says differs from what this part began with and its peers have done; empty: it does
    not."""
    if manifest is None or manifest["wall_time"] < (began := part.events("PeerStarted"))[0]["wall_time"]:
        return ""  # the same as for the part before
    files = {peer["peer_index"]: peer for peer in manifest["peers"]}
    for peer in began:
        if (done := files.get(peer["peer_index"])) is None:
            return f"peer {peer['peer_index']} is not in the checkpoint"
        expected = peer["samples"] + BATCH * (done["local_step"] - peer["local_step"])
        if done["samples"] != expected:
            return f"{done['samples']} samples of peer {peer['peer_index']} instead of {expected}"
    return ""


def cut_up(
    folder: Path, words: Sequence[str], sizes: Sequence[int], *, interruptions: int, dice: random.Random
) -> tuple[Part, list[list[Any]], list[str]]:
    """A run that is interrupted so often, and then ends. Returns its last part, a row for each, and what was wrong."""
    rows, failures, counted = list[list[Any]](), list[str](), 0
    for number in range(interruptions + 1):
        num_peers = sizes[number % len(sizes)]
        part = Part(folder, [*words, f"swarm.num_peers={num_peers}"])
        way, after_s = dice.choice(WAYS), dice.uniform(EARLIEST_S, LATEST_S)
        is_last = number == interruptions
        left = [] if is_last else part.interrupt(way, after_s)
        if is_last:
            part.finish()
        began = part.events("PeerStarted")
        if (samples := sum(peer["samples"] for peer in began)) != counted:
            failures.append(f"part {number} began with {samples} samples, and its checkpoint has {counted}")
        if left:
            failures.append(f"part {number}: left {', '.join(left)}")
        if is_last:
            rows.append([num_peers, "to its end", "-", samples, "-"])
            return part, rows, failures
        manifest = manifest_of(folder)
        if wrong := miscounted(part, manifest):
            failures.append(f"part {number}: {wrong}")
        counted = 0 if manifest is None else sum(peer["samples"] for peer in manifest["peers"])
        counted += 0 if manifest is None else manifest["other_samples"]
        rows.append([num_peers, way, round(after_s, 1), samples, counted])
    raise AssertionError


HEADER = ["peers", "until", "s after the first step", "samples, begun with", "samples, saved"]


def one_peer(folder: Path, *, steps: int, interruptions: int, dice: random.Random) -> tuple[dict[str, Any], list[str]]:
    words = [f"train.local_steps={steps}", "checkpoint.every_steps=20", "model.factory=paced:build"]
    whole = Part(folder / "whole", [*words, "model.args={step_s: 0}", "swarm.num_peers=1"])
    whole.finish()
    paced = [*words, "model.args={step_s: 0.01}"]
    part, rows, failures = cut_up(folder / "cut", paced, [1], interruptions=interruptions, dice=dice)
    print_table("one peer", HEADER, rows)
    first, second = (torch.load(each.run_dir / "model.pt", weights_only=True) for each in (whole, part))
    differing = [name for name in first if not torch.equal(first[name], second[name])]
    if differing:
        failures.append(f"other bits than without an interruption: {', '.join(differing)}")
    (end,) = part.events("PeerFinished")
    if end["samples"] != BATCH * steps:
        failures.append(f"{end['samples']} samples in the end instead of {BATCH * steps}")
    return {"interruptions": interruptions, "bit_for_bit": not differing, "samples": end["samples"]}, failures


def swarm(folder: Path, *, steps: int, interruptions: int, dice: random.Random) -> tuple[dict[str, Any], list[str]]:
    words = [f"train.local_steps={steps}", "checkpoint.every_steps=20", "model.factory=paced:build"]
    words += ["swarm.cpus_per_peer=0.1"]
    last = SIZES[interruptions % len(SIZES)]
    whole = Part(folder / "whole", [*words, "model.args={step_s: 0}", f"swarm.num_peers={last}"])
    whole.finish()
    paced = [*words, "model.args={step_s: 0.03}"]
    part, rows, failures = cut_up(folder / "cut", paced, SIZES, interruptions=interruptions, dice=dice)
    print_table("a swarm", HEADER, rows)
    ends, began = part.events("PeerFinished"), {peer["peer_index"]: peer for peer in part.events("PeerStarted")}
    for end in ends:
        peer = began[end["peer_index"]]
        expected = peer["samples"] + BATCH * (end["local_step"] - peer["local_step"])
        if end["samples"] != expected:
            failures.append(f"peer {end['peer_index']} ended with {end['samples']} samples instead of {expected}")
    summaries = [json.loads((each.run_dir / "summary.json").read_text()) for each in (whole, part)]
    undisturbed, accuracy = (each["merged_accuracy"] for each in summaries)
    if accuracy < undisturbed - WORSE:
        failures.append(f"accuracy {accuracy:.3f}, and {undisturbed:.3f} without an interruption")
    figures = {
        "interruptions": interruptions,
        "peers": list(SIZES),
        "accuracy": accuracy,
        "accuracy_uninterrupted": undisturbed,
        "final_outcome": summaries[1]["final_outcome"],
    }
    return figures, failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interruptions", type=int, default=10, help="of each of the two runs")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it starts in the background ignore it
    dice, count = random.Random(options.seed), options.interruptions
    with tempfile.TemporaryDirectory() as folder:
        alone, failures = one_peer(Path(folder) / "one", steps=400 * (count + 1), interruptions=count, dice=dice)
        many, more = swarm(Path(folder) / "swarm", steps=150 * (count + 1), interruptions=count, dice=dice)
    return conclude({"one_peer": alone, "swarm": many}, [*failures, *more])


if __name__ == "__main__":
    sys.exit(main())
