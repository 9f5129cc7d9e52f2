"""Does averaging fit through a slow link?

    each     every peer is behind a link of its own, of 10 Mbit/s: the whole state each round, in 16 bits, in pieces.
             Local steps of a fixed time that take no processor. Wanted: 0.97 of them with pieces that fit.
    nodes    two nodes of several peers, 100 Mbit/s between them: the digits, with `gossip.schedule` local and random.
             Wanted: a third of the bytes between the nodes or less, and the merged model as good within a point.

Network namespaces and links are made by `links.py`: root on Linux, `ip` and `tc`.

    python benchmarks/slow_links.py                     about 8 minutes on two cores
    python benchmarks/slow_links.py --only each --seconds 20
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from harness import all_at_once, conclude, print_table
from links import Link, Links, why_not
from links import Place as Corner

from ray_gossip import data, models
from ray_gossip.config import Config, parse
from ray_gossip.gossip.charter import Charter
from ray_gossip.gossip.engine import GossipEngine
from ray_gossip.gossip.protocols import StateShape, TrainingState
from ray_gossip.gossip.seat import Listen, Place
from ray_gossip.records import RoundReport
from ray_gossip.sidecar.network import Network
from ray_gossip.testing import RemotePeer, VectorState
from ray_gossip.training.trainer import Trainer

WAIT_S = 300.0
EACH, BETWEEN = Link(mbit_per_s=10.0), Link(mbit_per_s=100.0)
EACH_PEERS, SIZE, STEP_S, H = 4, 1_000_000, 0.05, 40
NODES, PER_NODE, DIGITS_STEPS, DIGITS_H, DIGITS_STEP_S = 2, 4, 400, 10, 0.05
VARIANTS: dict[str, dict[str, Any]] = {
    "no communication": {"group_size": 1},
    "all of it": {},
    "fp16": {"compression": "fp16"},
    "int8": {"compression": "int8"},
    "8 pieces": {"fragments": 8},
    "4 pieces, fp16": {"fragments": 4, "compression": "fp16"},
}
KEPT, TIMES, POINTS = 0.97, 3.0, 0.01


@dataclass(frozen=True)
class Done:
    """What a peer did."""

    steps_per_s: float
    longest_s: float  # local step
    reports: tuple[RoundReport, ...]


class LinkedPeer:
    """A peer that lives in a corner of a network.

    Args:
        task: what it trains: a vector of so many elements, or the digits.
    """

    def __init__(
        self, config: Config, index: int, corner: Corner, node: str, task: int | str, initial_peers: Sequence[str]
    ) -> None:
        corner.enter()
        torch.set_num_threads(1)
        self._state: TrainingState = VectorState(torch.zeros(task)) if isinstance(task, int) else _digits(config, index)
        size = task if isinstance(task, int) else self._trainer.averaged.size
        charter = Charter.of(config, run_id="links", has_driver=False)
        listen = Listen(host_maddrs=(f"/ip4/{corner.ip_address}/tcp/0",))
        self.network = Network(config, listen=listen, initial_peers=initial_peers, place=Place(charter, index))
        self.network.open(StateShape(size=size, num_parameters=size), node=node, data="benchmark")
        self.engine = GossipEngine(config, self.network, self.network.seat, data="benchmark")
        self.engine.attach(self._state)
        self._founders = config.swarm.num_peers

    @property
    def _trainer(self) -> Trainer:
        assert isinstance(self._state, Trainer)
        return self._state

    def multiaddrs(self) -> list[str]:
        return list(self.network.seat.multiaddrs)

    def join(self) -> None:
        self.engine.join(founders=self._founders)

    def train(self, step_s: float, seconds: float | None, steps: int | None) -> Done:
        """For so many seconds, or so many local steps."""
        took: list[float] = []
        reports: list[RoundReport] = []
        begun = started = time.monotonic()
        while len(took) < steps if steps is not None else started - begun < (seconds or 0.0):
            time.sleep(step_s)
            if isinstance(self._state, Trainer):
                self._state.step()
            reports += self.engine.after_step(len(took) + 1)
            now = time.monotonic()
            took.append(now - started)
            started = now
        return Done(len(took) / (started - begun), max(took), tuple(reports))

    def model(self) -> dict[str, torch.Tensor]:
        return self._trainer.model_state()

    def close(self) -> None:
        self.engine.shutdown()


def _digits(config: Config, index: int) -> Trainer:
    dataset = data.load(config.data)
    shard = data.deal(dataset.train_labels, config.swarm.num_peers, config=config.data, seed=config.seed)[index]
    model = models.build(config.model, in_shape=dataset.in_shape, num_classes=dataset.num_classes, seed=config.seed)
    return Trainer(config, model=model, dataset=dataset, shard=shard, device=torch.device("cpu"))


def run(
    config: Config,
    corners: Sequence[Corner],
    nodes: Sequence[str],
    task: int | str,
    *,
    step_s: float,
    seconds: float | None = None,
    steps: int | None = None,
) -> tuple[list[Done], list[dict[str, torch.Tensor]]]:
    """One peer in each of the corners; what each did, and its model."""
    peers: list[RemotePeer] = []
    try:
        addresses: list[str] = []
        for index, (corner, node) in enumerate(zip(corners, nodes, strict=True)):
            peers.append(RemotePeer(LinkedPeer, config, index, corner, node, task, addresses))
            if index == 0:
                peers[0].receive(WAIT_S)
                addresses = peers[0].call(LinkedPeer.multiaddrs)
        for peer in peers[1:]:
            peer.receive(WAIT_S)
        all_at_once(peers, LinkedPeer.join, wait_s=WAIT_S)
        done: list[Done] = all_at_once(
            peers, LinkedPeer.train, step_s, seconds, steps, wait_s=(seconds or 0.0) + WAIT_S
        )
        found = all_at_once(peers, LinkedPeer.model, wait_s=WAIT_S) if not isinstance(task, int) else []
        all_at_once(peers, LinkedPeer.close, wait_s=WAIT_S)
        return done, found
    finally:
        for peer in peers:
            peer.close()


def each_behind_its_own(seconds: float) -> tuple[dict[str, Any], list[str]]:
    figures: dict[str, Any] = {}
    rows = []
    for name, gossip in VARIANTS.items():
        config = parse({"swarm": {"num_peers": EACH_PEERS}, "gossip": {"steps": H, **gossip}})
        with Links(EACH_PEERS, EACH) as links:
            nodes = [corner.namespace for corner in links.places]
            done, _ = run(config, links.places, nodes, SIZE, step_s=STEP_S, seconds=seconds)
            sent = sum(corner.bytes_sent() for corner in links.places)
        reports = [report for each in done for report in each.reports]
        steps_per_s = statistics.fmean(each.steps_per_s for each in done)
        figures[name] = {
            "of_none": steps_per_s / figures.get("no communication", {"steps_per_s": steps_per_s})["steps_per_s"],
            "steps_per_s": steps_per_s,
            "rounds": dict(Counter(report.outcome for report in reports)),
            "round_s": statistics.median(r.matchmaking_s + r.allreduce_s for r in reports) if reports else 0.0,
            "longest_s": max(each.longest_s for each in done),
            "mbit_per_s": 8e-6 * sent / seconds / EACH_PEERS,
        }
        rows.append(
            [name, *(figures[name][key] for key in ("of_none", "longest_s", "round_s", "mbit_per_s", "rounds"))]
        )
    print_table(
        f"{EACH_PEERS} peers behind links of {EACH.mbit_per_s:g} Mbit/s, {4e-6 * SIZE:g} MB, a round every "
        f"{H * STEP_S:g} s",
        ["", "steps, of none", "longest step", "round s", "Mbit/s of each", "rounds"],
        rows,
    )
    failures = [
        f"{name}: {figures[name]['of_none']:.3f} of the local steps"
        for name in VARIANTS
        if "pieces" in name and figures[name]["of_none"] < KEPT
    ]
    return figures, failures


def between_nodes() -> tuple[dict[str, Any], list[str]]:
    figures: dict[str, Any] = {}
    number = NODES * PER_NODE
    for schedule in ("random", "local"):
        config = parse(
            {
                "swarm": {"num_peers": number},
                "gossip": {"steps": DIGITS_H, "group_size": PER_NODE, "schedule": schedule},
                "train": {"local_steps": DIGITS_STEPS, "recalibrate_samples": 0},
            }
        )
        with Links(NODES, BETWEEN) as links:
            corners = [links.places[index // PER_NODE] for index in range(number)]
            nodes = [corner.namespace for corner in corners]
            done, states = run(config, corners, nodes, "digits", step_s=DIGITS_STEP_S, steps=DIGITS_STEPS)
            sent = sum(corner.bytes_sent() for corner in links.places)
        reports = [report for each in done for report in each.reports]
        figures[schedule] = {
            "megabytes": sent / 1e6,
            "accuracy": _accuracy(config, states),
            "averaged": sum(report.outcome == "averaged" for report in reports) / max(1, len(reports)),
        }
    print_table(
        f"{NODES} nodes of {PER_NODE} peers, {BETWEEN.mbit_per_s:g} Mbit/s between them; {DIGITS_STEPS} local steps",
        ["schedule", "MB between them", "accuracy of the mean", "rounds averaged"],
        [[name, *each.values()] for name, each in figures.items()],
    )
    random, local = figures["random"], figures["local"]
    failures = []
    if random["megabytes"] < TIMES * local["megabytes"]:
        failures.append(f"random sends {random['megabytes'] / local['megabytes']:.1f} times as much as local")
    if local["accuracy"] < random["accuracy"] - POINTS:
        failures.append(f"local comes to {local['accuracy']:.3f}, random to {random['accuracy']:.3f}")
    return figures, failures


def _accuracy(config: Config, states: Sequence[dict[str, torch.Tensor]]) -> float:
    """Of the mean of all models, on the test split."""
    trainer = _digits(config, 0)
    trainer.model.load_state_dict(
        {
            name: torch.stack([state[name] for state in states]).mean(dim=0) if value.is_floating_point() else value
            for name, value in states[0].items()
        }
    )
    return trainer.evaluate().accuracy or 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["each", "nodes"])
    parser.add_argument("--seconds", type=float, default=40.0)
    options = parser.parse_args()
    if missing := why_not(EACH):
        parser.error(missing)
    figures: dict[str, Any] = {}
    failures: list[str] = []
    if options.only != "nodes":
        figures["each"], failures = each_behind_its_own(options.seconds)
    if options.only != "each":
        figures["nodes"], more = between_nodes()
        failures += more
    return conclude(figures, failures)


if __name__ == "__main__":
    sys.exit(main())
