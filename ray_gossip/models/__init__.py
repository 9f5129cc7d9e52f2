"""Networks: for images by name, others by a factory of the user's own."""

from __future__ import annotations

import math
from importlib import import_module

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ray_gossip.config import ModelConfig
from ray_gossip.errors import ConfigError
from ray_gossip.factory import Factory, make


def build(
    config: ModelConfig, *, in_shape: tuple[int, ...], num_classes: int, seed: int, factory: Factory | None = None
) -> nn.Module:
    """The network that `model.name` or `model.factory` names, on the CPU.

    A seed gives the same parameters on every peer, so that a swarm starts in agreement. The caller's random
    numbers go on as if nothing had been drawn.

    Args:
        in_shape: of one sample; an image's is channels, height, width.
        factory: goes before what `model.factory` names.

    Raises:
        ConfigError: the named network is for images, or the factory is not there, or makes no network that can be
            averaged.
    """
    # The CPU's generator alone: torch.manual_seed, or a fork_rng of all devices, would reach for CUDA too.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if config.factory is not None:
            offered = {"in_shape": in_shape, "num_classes": num_classes}
            own: nn.Module = make(
                "model.factory", config.factory, factory, returns=nn.Module, args=config.args, offered=offered
            )
            check(own, called=f"model.factory={config.factory}")
            return own
        if len(in_shape) != 3:
            raise ConfigError(
                f"model.name={config.name} is for images [channels, height, width], but samples are {list(in_shape)}: "
                "set model.factory"
            )
        if config.name in _NETWORKS:
            return _NETWORKS[config.name](in_shape, num_classes)
        resnets = import_module("ray_gossip.models.resnets")  # torchvision: two seconds that the others do not pay
        network: nn.Module = resnets.build(config, in_shape=in_shape, num_classes=num_classes)
        return network


def check(model: nn.Module, *, called: str) -> None:
    """Raise ConfigError unless all that would be averaged is float32 on the CPU, and something can be trained."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"{called} has no parameters to train")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise ConfigError(f"{called}: {name} has no shape yet: run the model once before")
        if tensor.device.type != "cpu":
            raise ConfigError(f"{called}: {name} is on {tensor.device}: leave it on the CPU until then")
        if tensor.dtype != torch.float32 and (tensor.is_floating_point() or tensor.requires_grad):
            raise ConfigError(
                f"{called}: {name} is {tensor.dtype}, but float32 is what is averaged; for faster steps use autocast, "
                "as train.precision=bf16 does"
            )


def _cnn(in_shape: tuple[int, ...], num_classes: int) -> nn.Module:
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


def _mlp(in_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(in_shape), 128),
        nn.ReLU(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, num_classes),
    )


_NETWORKS = {"cnn": _cnn, "mlp": _mlp}
