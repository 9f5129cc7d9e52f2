"""A training loop of the user's own, as one would write it for Ray Train."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ray_gossip


def exits(config: dict[str, Any]) -> None:
    """As scripts end that call sys.exit(main())."""
    train_loop(config)
    sys.exit(config["code"])


def fails_on_rank_0(config: dict[str, Any]) -> None:
    """Models that differ, because nobody has seeded them."""
    model = nn.Linear(64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    peer = ray_gossip.join(model, optimizer=optimizer)
    if peer.rank == 0:
        raise RuntimeError("rank 0 has a bug")
    for _ in range(config["steps"]):
        model(torch.ones(1, 64)).sum().backward()
        optimizer.step()


def goes_on(config: dict[str, Any]) -> None:
    """Dies once in its middle, on rank 1; whoever takes its place goes on where the swarm is."""
    torch.manual_seed(0)
    model = nn.Linear(64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    peer = ray_gossip.join(model, optimizer=optimizer)
    is_first = peer.local_step == 0
    momentum = optimizer.state_dict()["state"]
    has_momentum, threads = bool(momentum), torch.get_num_threads()
    peer.report({"began_at": peer.local_step, "has_momentum": has_momentum, "threads": threads})
    while peer.local_step < config["steps"]:
        time.sleep(0.01)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.rand(32, 64)), torch.randint(10, (32,))).backward()
        peer.saw(32)
        optimizer.step()
        if is_first and peer.rank == 1 and peer.local_step == config["dies_at"]:
            os.kill(os.getpid(), signal.SIGKILL)


def train_loop(config: dict[str, Any]) -> None:
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).flatten(1) / 16
    data = TensorDataset(images, torch.tensor(digits.target))
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=config["lr"], momentum=0.9)
    peer = ray_gossip.join(model, optimizer=optimizer)
    torch.manual_seed(peer.rank)
    loader = DataLoader(data, batch_size=32, shuffle=True)
    for epoch in range(config["epochs"]):
        right = 0
        for inputs, labels in loader:
            optimizer.zero_grad()
            outputs = model(inputs)
            loss = nn.functional.cross_entropy(outputs, labels)
            loss.backward()
            optimizer.step()
            right += int((outputs.argmax(1) == labels).sum())
        peer.report({"loss": loss, "accuracy": right / len(data), "epoch": epoch})
