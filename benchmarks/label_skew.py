"""What do group size and interval do to accuracy when every peer sees few classes?

Sixteen simulated peers train on the digits, sorted by label and cut, so that a peer sees one or two of ten classes.
Local SGD, schedules and the arithmetic of rounds are those of real runs, all in one process. At the end, after their
last round, the peers' own models are evaluated on all classes, and so is the merged one, the mean of their parameters:
own accuracy says how far the swarm is from agreement, merged accuracy what it has learned.

The own accuracy must rise with the group size M, until it is as good as that of one group of all, and fall with the
interval H, where the merged model must lose less than the peers do: directions, not sizes. Means over seeds, which deal
and initialise anew.

    python benchmarks/label_skew.py              about 80 seconds on one core
    python benchmarks/label_skew.py --seeds 1    about 40 seconds
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from harness import conclude, print_table
from numpy.typing import NDArray

from ray_gossip import data, models
from ray_gossip.config import Config, parse
from ray_gossip.mixing import average_round, consensus_distance
from ray_gossip.mixing.schedule import groups
from ray_gossip.training.trainer import Trainer

NUM_PEERS = 16
LOCAL_STEPS = 400
GROUP_SIZES = (1, 2, 4, 8, 16)  # at H=10
INTERVALS = (1, 5, 10, 20, 50)  # at M=4
TIE = 0.01  # of accuracy: less is no difference; a test split of 360 images


def config_of(group_size: int, steps: int, seed: int) -> Config:
    return parse(
        {
            "seed": seed,
            "swarm": {"num_peers": NUM_PEERS},
            "gossip": {"schedule": "random", "group_size": group_size, "steps": steps},
            "data": {"name": "digits", "shards": "label_sorted", "batch_size": 16},
            "model": {"name": "mlp"},
            "optimizer": {"lr": 0.1, "momentum": 0.0, "schedule": "cosine"},
            "train": {"local_steps": LOCAL_STEPS},
        }
    )


class Found(NamedTuple):
    """How good a swarm has become."""

    own: float  # accuracy of the peers' own models, mean
    merged: float  # accuracy of the merged model
    distance: float  # consensus distance over the norm of the merged parameters


class Swarm:
    """Sixteen trainers, and rounds on arrays."""

    def __init__(self, config: Config, dataset: data.Dataset) -> None:
        self.config = config
        shards = data.deal(dataset.train_labels, NUM_PEERS, config=config.data, seed=config.seed)
        self.trainers = [
            Trainer(
                config,
                model=models.build(
                    config.model, in_shape=dataset.in_shape, num_classes=dataset.num_classes, seed=config.seed
                ),
                dataset=dataset,
                shard=shard,
                device=torch.device("cpu"),
            )
            for shard in shards
        ]

    def train(self) -> None:
        """All local steps; a round after every `gossip.steps` of them."""
        steps = self.config.gossip.steps or 1
        for round in range(LOCAL_STEPS // steps):
            for trainer in self.trainers:
                for _ in range(steps):
                    trainer.step()
            self.round(round)

    def round(self, round: int) -> None:
        gossip = self.config.gossip
        met = groups(
            gossip.schedule,
            round=round,
            num_members=NUM_PEERS,
            group_size=gossip.group_size,
            seed=self.config.seed,
        )
        before = self.states()
        change = average_round(before, met, gossip.alpha) - before
        for trainer, row in zip(self.trainers, change, strict=True):
            trainer.add_to_state(torch.from_numpy(row))

    def states(self) -> NDArray[np.float32]:
        """[num_peers, state_size]."""
        states = torch.empty(NUM_PEERS, self.trainers[0].averaged.size)
        for trainer, row in zip(self.trainers, states, strict=True):
            trainer.read_state(row)
        array: NDArray[np.float32] = states.numpy()
        return array

    def evaluate(self) -> Found:
        """To be asked last: the first peer takes over the merged model."""
        own = statistics.mean(trainer.evaluate().accuracy or 0.0 for trainer in self.trainers)
        states = self.states()
        merged = states.mean(axis=0)
        self.trainers[0].write_state(torch.from_numpy(merged))
        merged_accuracy = self.trainers[0].evaluate().accuracy or 0.0
        return Found(own, merged_accuracy, consensus_distance(states) / float(np.linalg.norm(merged)))


def sweep(settings: Sequence[tuple[int, int]], seeds: int, dataset: data.Dataset) -> list[Found]:
    """What became of a swarm with each (group size, interval), mean over seeds."""
    found = []
    for group_size, steps in settings:
        runs = []
        for seed in range(seeds):
            swarm = Swarm(config_of(group_size, steps, seed), dataset)
            swarm.train()
            runs.append(swarm.evaluate())
        found.append(Found(*(statistics.mean(column) for column in zip(*runs, strict=True))))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2, help="runs of each setting (default 2)")
    seeds = parser.parse_args().seeds
    started = time.monotonic()
    torch.set_num_threads(1)
    dataset = data.load(config_of(1, 1, 0).data)
    by_size = sweep([(group_size, 10) for group_size in GROUP_SIZES], seeds, dataset)
    by_interval = sweep([(4, steps) for steps in INTERVALS], seeds, dataset)
    header = ["own accuracy", "merged", "distance/norm"]
    print_table(
        f"{NUM_PEERS} peers, label-sorted shards, H=10: accuracy after {LOCAL_STEPS} local steps, {seeds} seeds",
        ["M", *header],
        [[size, *_row(found)] for size, found in zip(GROUP_SIZES, by_size, strict=True)],
    )
    print_table(
        "the same by interval, M=4",
        ["H", *header],
        [[steps, *_row(found)] for steps, found in zip(INTERVALS, by_interval, strict=True)],
    )
    print(f"\n{time.monotonic() - started:.0f} s in all")
    failures = complaints(by_size, by_interval)
    figures = {
        "by_group_size": {str(size): found._asdict() for size, found in zip(GROUP_SIZES, by_size, strict=True)},
        "by_interval": {str(steps): found._asdict() for steps, found in zip(INTERVALS, by_interval, strict=True)},
    }
    return conclude({"benchmark": "label_skew", **figures}, failures)


def complaints(by_size: Sequence[Found], by_interval: Sequence[Found]) -> list[str]:
    """Which directions are wrong."""
    failures = []
    for (small, large), (before, after) in zip(pairwise(GROUP_SIZES), pairwise(by_size), strict=True):
        least = TIE if large <= 4 else -TIE  # above that, there is little left to gain
        if after.own - before.own <= least:
            failures.append(
                f"own accuracy does not rise from M={small} ({before.own:.3f}) to {large} ({after.own:.3f})"
            )
    for (short, long), (before, after) in zip(pairwise(INTERVALS), pairwise(by_interval), strict=True):
        if after.own > before.own + TIE:
            failures.append(f"own accuracy rises from H={short} ({before.own:.3f}) to {long} ({after.own:.3f})")
    often, seldom = by_interval[0], by_interval[-1]
    if not 0 < often.merged - seldom.merged < often.own - seldom.own:
        failures.append(
            f"from H={INTERVALS[0]} to {INTERVALS[-1]} the merged model loses {often.merged - seldom.merged:.3f}, "
            f"the peers {often.own - seldom.own:.3f}"
        )
    return failures


def _row(found: Found) -> list[str]:
    return [f"{value:.3f}" for value in found]


if __name__ == "__main__":
    sys.exit(main())
