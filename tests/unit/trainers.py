"""Trainers of the digits for tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ray_gossip import data, models
from ray_gossip.config import Config, DataConfig, parse
from ray_gossip.training.trainer import Trainer

CPU = torch.device("cpu")
DIGITS = data.load(DataConfig())
EVERYTHING = torch.arange(DIGITS.num_train)


def build_model(config: Config) -> nn.Module:
    return models.build(config.model, in_shape=DIGITS.in_shape, num_classes=10, seed=config.seed)


def make_trainer(
    *, shard: Tensor = EVERYTHING, model: nn.Module | None = None, device: torch.device = CPU, **sections: Any
) -> Trainer:
    config = parse(sections)
    model = model or build_model(config)
    return Trainer(config, model=model, dataset=DIGITS, shard=shard, device=device)


def with_batch_norm() -> nn.Module:
    """Parameters, floating-point buffers, and one integer buffer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


def accuracy_of(trainer: Trainer) -> float:
    accuracy = trainer.evaluate().accuracy
    assert accuracy is not None
    return accuracy


def state_of(trainer: Trainer) -> Tensor:
    flat = torch.empty(trainer.averaged.size)
    trainer.read_state(flat)
    return flat
