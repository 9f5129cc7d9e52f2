"""A training loop that can be interrupted: six lines more than one that cannot."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset

import ray_gossip


class Digits(Dataset[tuple[int, torch.Tensor, int]]):
    """Each with its number."""

    def __init__(self) -> None:
        digits = load_digits()
        self.images = torch.tensor(digits.images, dtype=torch.float32).flatten(1) / 16
        self.labels = digits.target

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor, int]:
        return index, self.images[index], int(self.labels[index])


def train_loop(config: dict[str, Any]) -> None:
    """Leaves a file that says which samples each step has seen; a step that is done again stands there again."""
    torch.manual_seed(0)
    data = Digits()
    model = nn.Sequential(nn.Linear(64, config.get("width", 32)), nn.ReLU(), nn.Linear(config.get("width", 32), 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [60, 120], gamma=0.5)
    peer = ray_gossip.join(model, optimizer=optimizer)
    sampler = peer.sampler(data)
    if peer.resumed is not None:
        scheduler.load_state_dict(peer.resumed["scheduler"])
    loader = DataLoader(data, batch_size=16, sampler=sampler, num_workers=config.get("workers", 0))
    log = Path(config["folder"]) / f"peer-{peer.rank}.txt"
    for _ in sampler.epochs(config["epochs"]):
        for numbers, inputs, labels in loader:
            loss = nn.functional.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            peer.saw(len(inputs))
            optimizer.step()
            scheduler.step()
            time.sleep(config["step_s"])
            with log.open("a") as file:
                file.write(f"{peer.local_step} {' '.join(map(str, numbers.tolist()))}\n")
            peer.checkpoint(scheduler=scheduler)
    peer.report({"loss": loss, "lr": scheduler.get_last_lr()[0]})


def seen(folder: Path, rank: int) -> Iterator[tuple[int, list[int]]]:
    """Each step of a peer, with its samples: as it was the last time."""
    lines = (folder / f"peer-{rank}.txt").read_text().splitlines()
    latest = {int(step): [int(number) for number in numbers] for step, *numbers in map(str.split, lines)}
    yield from sorted(latest.items())
