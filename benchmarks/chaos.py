"""Does a run outlive its parts? `ray-gossip chaos`, beside the same run left alone, on a Ray of this machine's own.

Local steps take a fixed time and no processor, as on a GPU; settings are the defaults but for what the size of the
machine asks for: where all processors are busy with rounds already, as those of two cores are with 12 peers and local
steps of 0.2 s, a peer that starts again slows the others down.

    python benchmarks/chaos.py                                     12 peers, twice 30 minutes, 125 faults an hour
    python benchmarks/chaos.py --peers 4 --minutes 3 --rate 400    to try it
    python benchmarks/chaos.py --sizes 4 8 12                      whom one kill disturbs, by the number of peers
    python benchmarks/chaos.py --sizes 4 8 12 --steps 2            the same with a round a second, not every ten

The storm: kill -9 of the process of an actor, of its sidecar, of its libp2p daemon, SIGSTOP of the actor, and a network
on which nothing comes or goes for 10 s. Wanted: throughput (samples a second, each counted once) at least 0.985 of the
quiet run's, at least 0.90 of the living peers averaged in a round, victims back within 15 s (median) and 30 s (90th
percentile; of a stopped one from when it is noticed), every victim back, no higher loss on the test split than the
quiet run's by more than the peers differ in that, and no process left. The loss in training is shown, too: all know
their own samples by heart by then, and for some seconds a successor, which begins with the model of another, does not
(`docs/log.md`). By size: one kill costs at most group_size - 1 other peers a round, whatever the number of peers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import MARK, conclude, left_of, new_mark, print_table

from ray_gossip.config import Config

START_S, END_S = 300.0, 180.0
GROUP_SIZE = 4
KILL_EVERY_S, KILLS = 20, 8
THROUGHPUT, AVERAGED, MEDIAN_S, TAIL_S = 0.985, 0.90, 15.0, 30.0


@dataclass
class Outcome:
    """What a run came to."""

    events: list[dict[str, Any]]
    summary: dict[str, Any]
    left: list[str]  # processes

    def samples_per_s(self, seconds: float) -> float:
        """Of all peers, each sample once, from when all have averaged."""
        rounds = [each for each in self.events if each["event"] == "RoundReport"]
        first = {each["peer_index"]: each["wall_time"] for each in reversed(rounds)}
        since = max(first.values())
        seen = 0
        for marks in self._progress().values():
            inside = [each["samples"] for each in marks if since <= each["wall_time"] <= since + seconds]
            seen += max(inside, default=0) - min(inside, default=0)
        return seen / seconds

    @property
    def losses(self) -> list[float]:
        """In training, of each peer: the mean of the last quarter of the run. What a peer tells is the loss of a few
        steps, and one hard sample makes it ten times as high."""
        return self._lately("Progress")

    @property
    def test_losses(self) -> list[float]:
        """On the test split, of each peer's own model: the mean of the last quarter of the run."""
        return self._lately("Evaluation")

    def _lately(self, event: str) -> list[float]:
        begins = 0.75 * max(each["wall_time"] for each in self.events) + 0.25 * self.events[0]["wall_time"]
        told = defaultdict[int, list[float]](list)
        for each in self.events:
            if each["event"] == event and each["wall_time"] >= begins and each["loss"] is not None:
                told[each["peer_index"]].append(each["loss"])
        return [statistics.fmean(losses) for losses in told.values()]

    @property
    def averaged(self) -> float:
        """Share of the rounds, counted for each peer."""
        rounds: dict[str, int] = self.summary["rounds"]
        return rounds["averaged"] / max(1, sum(rounds.values()))

    def _progress(self) -> dict[int, list[dict[str, Any]]]:
        found: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
        for each in self.events:
            if each["event"] == "Progress":
                found[each["peer_index"]].append(each)
        return found


def run(num_peers: int, *words: str, minutes: float, step_s: float) -> Outcome:
    """`ray-gossip chaos` in a process of its own, for so many minutes from its first step."""
    mark = new_mark()
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        command = [
            *(sys.executable, "-m", "ray_gossip.cli", "chaos", "--json", "--minutes", str(minutes)),
            *("--run-dir", str(run_dir), "model.factory=paced:build", f"model.args={{step_s: {step_s}}}"),
            *(f"swarm.num_peers={num_peers}", "swarm.cpus_per_peer=0.1"),
            *(f"gossip.group_size={GROUP_SIZE}", "train.local_steps=1000000000", "train.eval_every=1000000000"),
            *("swarm.stop_s=20", *words),
        ]
        ended = subprocess.run(
            command,
            cwd=Path(__file__).parent,
            env={**os.environ, MARK: mark, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            text=True,
            timeout=START_S + 60 * minutes + END_S,
        )
        if ended.returncode:
            raise SystemExit(f"ray-gossip chaos ended with {ended.returncode}")
        events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    return Outcome(events, json.loads(ended.stdout.splitlines()[-1]), left_of(mark))


def storm(num_peers: int, *, minutes: float, rate: float, step_s: float, seed: int) -> int:
    pace: dict[str, Any] = {"minutes": minutes, "step_s": step_s}
    words = ("train.eval_every=100", f"seed={seed}")
    quiet = run(num_peers, "--rate", "0", *words, **pace)
    stormy = run(num_peers, "--rate", str(rate), *words, **pace)
    recovery = stormy.summary["recovery"]
    print_table(
        "what was hit",
        ["", "times", "back", "noticed, median s", "back, median s", "back, 90 % s", "samples lost"],
        [_row(kind, figures) for kind, figures in [*recovery["by_kind"].items(), ("all", recovery)]],
    )
    speeds = [each.samples_per_s(60 * minutes) for each in (quiet, stormy)]
    print_table(
        f"{num_peers} peers",
        ["", "samples/s", "averaged", "loss in training", "on the test split"],
        [
            [name, speed, each.averaged, statistics.fmean(each.losses), statistics.fmean(each.test_losses)]
            for name, each, speed in zip(("quiet", "storm"), (quiet, stormy), speeds, strict=True)
        ],
    )
    spread = max(quiet.test_losses) - min(quiet.test_losses)
    figures = {
        "peers": num_peers,
        "minutes": minutes,
        "faults": recovery["faults"],
        "back_median_s": _after_notice(stormy, "back_median_s"),
        "back_p90_s": _after_notice(stormy, "back_p90_s"),
        "throughput": speeds[1] / speeds[0],
        "throughput_by_itself": recovery["throughput"],
        "averaged_quiet": quiet.averaged,
        "averaged": stormy.averaged,
        "loss_in_training_quiet": statistics.fmean(quiet.losses),
        "loss_in_training": statistics.fmean(stormy.losses),
        "loss_quiet": statistics.fmean(quiet.test_losses),
        "loss_spread_quiet": spread,
        "loss": statistics.fmean(stormy.test_losses),
        "left": len(quiet.left) + len(stormy.left),
    }
    failures = []
    if missing := recovery["faults"] - recovery["back"]:
        failures.append(f"{missing} of {recovery['faults']} victims did not come back")
    for name, least in (("throughput", THROUGHPUT), ("averaged", AVERAGED)):
        if figures[name] < least:
            failures.append(f"{name} {figures[name]:.3f} is below {least}")
    for name, most in (("back_median_s", MEDIAN_S), ("back_p90_s", TAIL_S)):
        if figures[name] > most:
            failures.append(f"{name} {figures[name]:.1f} is above {most:g}")
    if figures["loss"] > figures["loss_quiet"] + spread:
        failures.append(f"the loss {figures['loss']:.3g} is above {figures['loss_quiet']:.3g} and its spread")
    if left := [*quiet.left, *stormy.left]:
        failures.append(f"processes are left: {', '.join(left)}")
    return conclude(figures, failures)


def _row(name: str, figures: dict[str, Any]) -> list[Any]:
    seconds = [figures[key] for key in ("noticed_median_s", "back_median_s", "back_p90_s")]
    shown = ["-" if each is None else each for each in seconds]
    return [name, figures["faults"], figures["back"], *shown, figures["samples_lost"]]


def _after_notice(outcome: Outcome, key: str) -> float:
    """From when it was noticed: a stopped process is given some seconds in which somebody may wake it."""
    recovery = outcome.summary["recovery"]
    found: float = recovery[key.replace("back", "mended")]
    return found


def by_size(sizes: Sequence[int], *, steps: int, step_s: float, seed: int) -> int:
    """The same kills in swarms of several sizes."""
    minutes = KILL_EVERY_S * (KILLS + 1) / 60
    rows, failures = [], []
    for num_peers in sizes:
        # in turn: a peer that is lost again within a minute waits longer for its successor each time
        plan = ", ".join(
            f"{{kind: kill, peer: {number % num_peers}, at_s: {KILL_EVERY_S * (1 + number)}}}"
            for number in range(KILLS)
        )
        words = (f"faults.plan=[{plan}]", f"gossip.steps={steps}", f"seed={seed}")
        outcome = run(num_peers, *words, minutes=minutes, step_s=step_s)
        recovery = outcome.summary["recovery"]
        per_kill = recovery["rounds_lost"] / max(1, recovery["faults"])
        rows.append([num_peers, recovery["faults"], recovery["back"], per_kill, recovery["most_rounds_lost"]])
        if recovery["most_rounds_lost"] > GROUP_SIZE - 1:
            failures.append(f"of {num_peers} peers, one kill cost {recovery['most_rounds_lost']} rounds of others")
        if outcome.left or recovery["back"] < recovery["faults"]:
            failures.append(f"of {num_peers} peers: left {outcome.left}, back {recovery['back']}")
    header = ["peers", "kills", "back", "rounds of others lost by a kill", "the most"]
    print_table("whom one kill disturbs", header, rows)
    figures = [dict(zip(("peers", "kills", "back", "lost_per_kill", "most_lost"), row, strict=True)) for row in rows]
    return conclude({"group_size": GROUP_SIZE, "steps": steps, "sizes": figures}, failures)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=12)
    parser.add_argument("--minutes", type=float, default=30.0, help="of each of the two runs")
    parser.add_argument("--rate", type=float, default=125.0, help="faults an hour")
    parser.add_argument("--step_s", type=float, default=0.5, help="duration of a local step")
    parser.add_argument("--sizes", type=int, nargs="+", help="numbers of peers, instead of the storm")
    parser.add_argument("--steps", type=int, default=Config().gossip.steps, help="local steps a round, with --sizes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.sizes:
        return by_size(options.sizes, steps=options.steps, step_s=options.step_s, seed=options.seed)
    return storm(options.peers, minutes=options.minutes, rate=options.rate, step_s=options.step_s, seed=options.seed)


if __name__ == "__main__":
    sys.exit(main())
