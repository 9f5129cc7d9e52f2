"""Networks for images."""

from __future__ import annotations

import math
from importlib import import_module

import torch
from torch import nn

from ray_gossip.config import ModelConfig


def build(config: ModelConfig, *, in_shape: tuple[int, int, int], num_classes: int, seed: int) -> nn.Module:
    """The network that `model.name` names, on the CPU.

    A seed gives the same parameters on every peer, so that a swarm starts in agreement. The caller's random
    numbers go on as if nothing had been drawn.

    Args:
        in_shape: channels, height, width of one image.
    """
    # The CPU's generator alone: torch.manual_seed, or a fork_rng of all devices, would reach for CUDA too.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if config.name in _NETWORKS:
            return _NETWORKS[config.name](in_shape, num_classes)
        resnets = import_module("ray_gossip.models.resnets")  # torchvision: two seconds that the others do not pay
        network: nn.Module = resnets.build(config, in_shape=in_shape, num_classes=num_classes)
        return network


def _cnn(in_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """For images of 8x8 or more. Only the first convolution is padded, so that an 8x8 image shrinks to 1x1:
    on digits that is a quarter faster than keeping a map until the pool, and as accurate."""
    return nn.Sequential(
        nn.Conv2d(in_shape[0], 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, num_classes),
    )


def _mlp(in_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(in_shape), 128),
        nn.ReLU(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, num_classes),
    )


_NETWORKS = {"cnn": _cnn, "mlp": _mlp}
