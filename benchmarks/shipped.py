"""Is `engine=hivemind` a fair baseline?

It must do what hivemind does when it is used by hand (shipped_by_hand.py): four peers, 1,000 local steps of the digits,
a round every 20 steps of each. Both run in turn, `--repeats` times; rounds, seconds of training and accuracy are means
over peers and runs, and may differ by 10 %. hivemind's clock is an estimate, and a loaded machine stretches it: the
more repeats, the better. What is compared is hivemind, not what Ray's own processes cost on two full cores: one Ray
runs beside both, and each local step waits for 50 ms without CPU, as for a GPU (paced.py).

Bytes are what an all-reduce costs: each round, a peer of M sends twice (1 - 1/M) of the model.

    python benchmarks/shipped.py                about 10 minutes on two cores
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray
from harness import conclude, print_table
from shipped_by_hand import LOCAL_STEPS, PEERS, H

MAX_DIFFERENCE = 0.1
RUN_S = 900.0
KEYS = ("rounds", "seconds", "accuracy")


def run(*command: str) -> str:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.run(
        [sys.executable, *command], env=environment, stdout=subprocess.PIPE, text=True, timeout=RUN_S, check=True
    ).stdout


def by_hand() -> list[dict[str, Any]]:
    """Figures of each peer."""
    lines = run(str(Path(__file__).with_name("shipped_by_hand.py"))).splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def as_engine() -> list[dict[str, Any]]:
    """Figures of each peer, read from the events of a run of the command line."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["engine=hivemind", f"swarm.num_peers={PEERS}", f"gossip.group_size={PEERS}", f"gossip.steps={H}"]
        words += [
            f"train.local_steps={LOCAL_STEPS}",
            f"train.eval_every={LOCAL_STEPS}",
            "data.augment=none",
            "model.factory=paced:build",
        ]
        run("-m", "ray_gossip.cli", "train", *words, "--run-dir", f"{folder}/run", "--json")
        events = [json.loads(line) for line in Path(folder, "run", "events.jsonl").read_text().splitlines()]
    figures: list[dict[str, Any]] = [{} for _ in range(PEERS)]
    for kind in ("PeerStarted", "RoundReport", "PeerFinished", "Evaluation"):
        for event in (event for event in events if event["event"] == kind):
            figure = figures[event["peer_index"]]
            if kind == "PeerStarted":
                figure |= {"rounds": 0, "bytes": 0, "averaged": 0, "model_bytes": event["averaged_bytes"]}
            elif kind == "RoundReport":
                figure["rounds"] += 1
                figure["bytes"] += event["bytes_sent"]
                figure["averaged"] += event["outcome"] == "averaged"
            elif kind == "PeerFinished":
                figure["seconds"] = event["train_s"]
            elif event["model"] == "peer":
                figure["accuracy"] = event["accuracy"]
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each (default 3)")
    options = parser.parse_args()
    peers: dict[str, list[dict[str, Any]]] = {"by hand": [], "engine=hivemind": []}
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["RAY_ADDRESS"] = ray.init(num_cpus=PEERS, log_to_driver=False).address_info["gcs_address"]
    for _ in range(options.repeats):
        peers["by hand"] += by_hand()
        peers["engine=hivemind"] += as_engine()
    figures = {name: {key: statistics.mean(p[key] for p in found) for key in KEYS} for name, found in peers.items()}
    print_table("4 peers, a round every 20 local steps", ["", *KEYS], [[n, *f.values()] for n, f in figures.items()])
    failures = []
    for key in KEYS:
        hand, engine = figures["by hand"][key], figures["engine=hivemind"][key]
        if abs(engine - hand) > MAX_DIFFERENCE * hand:
            failures.append(f"{key}: {engine:.3g} with engine=hivemind, {hand:.3g} by hand")
    found = peers["engine=hivemind"]
    expected = sum(peer["rounds"] * peer["model_bytes"] for peer in found) * 2 * (1 - 1 / PEERS)
    share = sum(peer["bytes"] for peer in found) / expected
    if not 0.8 < share < 1.2:
        failures.append(f"the bytes are {share:.2f} of what so many all-reduces send")
    averaged = sum(peer["averaged"] for peer in found) / sum(peer["rounds"] for peer in found)
    return conclude({"benchmark": "shipped", **figures, "bytes_of_expected": share, "averaged": averaged}, failures)


if __name__ == "__main__":
    sys.exit(main())
