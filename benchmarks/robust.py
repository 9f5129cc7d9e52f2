"""What does one bad peer spoil, and what does it cost to hold it back?

Eight real peers train on the digits and average in groups of four. One of them, which knows the swarm and follows its
protocol, sends

    random    random numbers instead of its parameters
    scaled    a hundred times its update since the last round
    labels    an honest update, of labels that are shuffled
    all       three peers, each of these: where two of a group of four are bad, no rule can tell who is right

With `gossip.robust` none, clip and trimmed; the accuracy is that of the merged model, which every peer has in the end.
With clip and trimmed it must be within 0.02 of the undisturbed one with none, but for `all`, which is shown without a
bound; and the bad peer that is far from the others must be named.

Then, without a bad peer, what a rule costs: the time of an all-reduce of a million parameters in groups of four.

    python benchmarks/robust.py
    python benchmarks/robust.py --seeds 1    about 6 minutes on two cores
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from harness import SteppingPeer, all_at_once, conclude, measure, print_table, start_peers

from ray_gossip import data, models
from ray_gossip.causes import FAR_OUT
from ray_gossip.config import Config, parse
from ray_gossip.records import RoundReport
from ray_gossip.testing import Peers
from ray_gossip.training.trainer import Trainer

NUM_PEERS, GROUP_SIZE, H, LOCAL_STEPS, STEP_S = 8, 4, 20, 400, 0.02
RULES = ("none", "clip", "trimmed")
FAULTS: dict[str, dict[int, str]] = {  # by peer
    "nobody": {},
    "random": {5: "random"},
    "scaled": {5: "scaled"},
    "labels": {5: "labels"},
    "all": {3: "random", 4: "scaled", 5: "labels"},
}
BOUND = 0.02  # of accuracy; a test split of 360 images
WAIT_S = 120.0
TIMED_SIZE, TIMED_S = 1_000_000, 20.0

_run_ids = itertools.count()


def config_of(rule: str, seed: int = 0, *, steps: int = H) -> Config:
    return parse(
        {
            "seed": seed,
            "swarm": {"num_peers": NUM_PEERS},
            "gossip": {"group_size": GROUP_SIZE, "steps": steps, "robust": rule},
            "model": {"name": "mlp"},
            "optimizer": {"lr": 0.1},
            "train": {"local_steps": LOCAL_STEPS},
        }
    )


class Bad:
    """A trainer whose state is not what it sends. After a round it goes on from the mean, as the others do."""

    def __init__(self, trainer: Trainer, kind: str, *, seed: int) -> None:
        self._trainer, self._kind, self._generator = trainer, kind, torch.Generator().manual_seed(seed)
        self._since = torch.empty(trainer.averaged.size)  # its state after the last round
        trainer.read_state(self._since)
        self._sent = self._since.clone()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)

    def read_state(self, out: torch.Tensor) -> None:
        if self._kind == "random":
            out.copy_(torch.randn(len(out), generator=self._generator))
        else:
            self._trainer.read_state(out)
            out.copy_(self._since + 100 * (out - self._since))
        self._sent.copy_(out)

    def add_to_state(self, delta: torch.Tensor) -> None:
        self.write_state(self._sent + delta)

    def write_state(self, flat: torch.Tensor) -> None:
        self._trainer.write_state(flat)
        self._since.copy_(flat)


@dataclass(frozen=True)
class Course:
    """What became of one peer."""

    accuracy: float  # of the model that it ends with: the merged one
    reports: tuple[RoundReport, ...]
    final_outcome: str


class TrainingPeer(SteppingPeer):
    """A peer that trains on its shard of the digits, each local step in a fixed time at least."""

    def open_training(self, config: Config, run_id: str, fault: str | None) -> None:
        dataset = data.load(config.data)
        shard = data.deal(dataset.train_labels, NUM_PEERS, config=config.data, seed=config.seed)[self.peer_index]
        generator = torch.Generator().manual_seed(self.peer_index)
        if fault == "labels":
            labels = dataset.train_labels.clone()
            labels[shard] = labels[shard][torch.randperm(len(shard), generator=generator)]
            dataset = dataclasses.replace(dataset, train_labels=labels)
        shape: Mapping[str, Any] = {"in_shape": dataset.in_shape, "num_classes": dataset.num_classes}
        model = models.build(config.model, **shape, seed=config.seed)
        self.trainer = Trainer(config, model=model, dataset=dataset, shard=shard, device=torch.device("cpu"))
        bad = fault in ("random", "scaled")
        state = Bad(self.trainer, str(fault), seed=self.peer_index) if bad else self.trainer
        self.open_engine(config, run_id, state, self.trainer.averaged.size)

    def learn(self) -> Course:
        reports: list[RoundReport] = []
        for step in range(1, LOCAL_STEPS + 1):
            due = time.monotonic() + STEP_S
            self.trainer.step()
            time.sleep(max(0.0, due - time.monotonic()))
            reports += self.engine.after_step(step)
        final = self.engine.finish(LOCAL_STEPS)
        accuracy = self.trainer.evaluate().accuracy
        assert accuracy is not None
        return Course(accuracy, (*reports, *final.reports), final.outcome)


@dataclass(frozen=True)
class Found:
    """What became of a swarm."""

    accuracy: float  # the lowest of the honest peers
    averaged: float  # share of the rounds
    named: tuple[int, ...]  # peers that were held back in half of their rounds or more


def run(peers: Peers, rule: str, fault: str, seed: int) -> Found:
    config, run_id = config_of(rule, seed), f"robust{next(_run_ids)}"
    for peer_index, peer in enumerate(peers):
        peer.send(TrainingPeer.open_training, config, run_id, FAULTS[fault].get(peer_index))
    for peer in peers:
        peer.receive(WAIT_S)
    courses: list[Course] = all_at_once(peers, TrainingPeer.learn, wait_s=LOCAL_STEPS * STEP_S + WAIT_S)
    all_at_once(peers, TrainingPeer.close_engine, wait_s=WAIT_S)
    honest = [course for index, course in enumerate(courses) if index not in FAULTS[fault]]
    reports = [report for course in courses for report in course.reports]
    return Found(
        accuracy=min(course.accuracy for course in honest),
        averaged=sum(report.outcome == "averaged" for report in reports) / len(reports),
        named=_named(reports),
    )


def _named(reports: Sequence[RoundReport]) -> tuple[int, ...]:
    met = {(index, report.round) for report in reports for index in report.group}
    far = {
        (index, report.round)
        for report in reports
        for index in report.group
        if f"peer-{index:02d} {FAR_OUT}" in report.cause
    }
    return tuple(
        index
        for index in range(NUM_PEERS)
        if 2 * sum(each == index for each, _ in far) >= max(1, sum(each == index for each, _ in met))
    )


def timed(peers: Peers) -> dict[str, float]:
    """Median seconds of an all-reduce, by rule."""
    found = {}
    for rule in RULES:
        paces = measure(peers, config_of(rule), fixed_s=[0.05] * NUM_PEERS, size=TIMED_SIZE, seconds=TIMED_S)
        found[rule] = statistics.median(
            report.allreduce_s for pace in paces for report in pace.reports if report.outcome == "averaged"
        )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    options = parser.parse_args()
    faults = ["nobody", *(fault for fault in options.faults if fault != "nobody")]
    found: dict[str, dict[str, list[Found]]] = {}
    with start_peers(TrainingPeer, NUM_PEERS) as peers:
        for fault in faults:
            found[fault] = {rule: [run(peers, rule, fault, seed) for seed in range(options.seeds)] for rule in RULES}
        seconds = timed(peers)
    accuracy = {
        fault: {rule: statistics.mean(each.accuracy for each in runs) for rule, runs in by_rule.items()}
        for fault, by_rule in found.items()
    }
    print_table(
        f"accuracy of the merged model, {NUM_PEERS} peers in groups of {GROUP_SIZE}, mean of {options.seeds} seeds",
        ["bad peer", *RULES, "held back: clip", "trimmed"],
        [
            [fault, *by_rule.values(), *(str([each.named for each in found[fault][rule]]) for rule in RULES[1:])]
            for fault, by_rule in accuracy.items()
        ],
    )
    print_table("an all-reduce of 1 M parameters, seconds", RULES, [[seconds[rule] for rule in RULES]])
    failures = [
        f"{rule}, {fault}: accuracy {accuracy[fault][rule]:.3f}, undisturbed {accuracy['nobody']['none']:.3f}"
        for fault in faults
        for rule in RULES[1:]
        if fault != "all" and accuracy[fault][rule] < accuracy["nobody"]["none"] - BOUND
    ]
    for fault in ("nobody", "random", "scaled"):
        expected = tuple(index for index, kind in FAULTS[fault].items() if kind != "labels")
        failures += [
            f"{rule}, {fault}: held back were {each.named}"
            for rule in RULES[1:]
            for each in found.get(fault, {}).get(rule, [])
            if each.named != expected
        ]
    averaged = min(each.averaged for by_rule in found.values() for runs in by_rule.values() for each in runs)
    figures = {"accuracy": accuracy, "allreduce_s": seconds, "averaged": averaged, "seeds": options.seeds}
    return conclude({"benchmark": "robust", **figures}, failures)


if __name__ == "__main__":
    sys.exit(main())
