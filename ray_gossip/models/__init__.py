"""Networks: for images by name, others by a factory of the user's own."""

from __future__ import annotations

import math
from importlib import import_module

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ray_gossip.config import ModelConfig
from ray_gossip.errors import ConfigError, UserError
from ray_gossip.factory import Factory, make
from ray_gossip.training.averaged import ModelState
from ray_gossip.training.modes import evaluating


def build(
    config: ModelConfig,
    *,
    in_shape: tuple[int, ...],
    num_classes: int | None,
    num_outputs: int | None = None,
    seed: int,
    factory: Factory | None = None,
    input_type: torch.dtype = torch.float32,
) -> nn.Module:
    """The network that `model.name` or `model.factory` names, on the CPU.

    A seed gives the same parameters on every peer, so that a swarm starts in agreement. The caller's random
    numbers go on as if nothing had been drawn.

    Args:
        in_shape: of one sample; an image's is channels, height, width.
        num_classes: of the labels; None: they are numbers.
        num_outputs: how many numbers the network gives for a sample; None: one for each class.
        factory: goes before what `model.factory` names.
        input_type: of what goes into the network; a model that learns its shapes from the first batch gets two zeros.

    Raises:
        ConfigError: the named network is for images, or the factory is not there, or makes no network that can be
            averaged.
    """
    if (num_outputs := num_classes if num_outputs is None else num_outputs) is None:
        raise ValueError("neither num_classes nor num_outputs is given")
    # The CPU's generator alone: torch.manual_seed, or a fork_rng of all devices, would reach for CUDA too.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if config.factory is not None:
            classes = {} if num_classes is None else {"num_classes": num_classes}
            offered = {"in_shape": in_shape, "num_outputs": num_outputs, **classes}
            own: nn.Module = make(
                "model.factory", config.factory, factory, returns=nn.Module, args=config.args, offered=offered
            )
            _give_shapes(own, torch.zeros(2, *in_shape, dtype=input_type))
            for called, tensor in [*own.named_parameters(), *own.named_buffers()]:
                if tensor.device.type != "cpu":
                    raise ConfigError(f"model.factory={config.factory}: {called} is on {tensor.device}, not on the CPU")
            check(own, called=f"model.factory={config.factory}")
            if all(module.training for module in own.modules()):
                own.train()  # as every loop begins: a model may keep a part of itself in evaluation mode
            return own
        if len(in_shape) != 3:
            raise ConfigError(
                f"model.name={config.name} is for images [channels, height, width], but samples are {list(in_shape)}: "
                "set model.factory"
            )
        if config.name in _NETWORKS:
            return _NETWORKS[config.name](in_shape, num_outputs)
        resnets = import_module("ray_gossip.models.resnets")  # torchvision: two seconds that the others do not pay
        network: nn.Module = resnets.build(config, in_shape=in_shape, num_outputs=num_outputs)
        return network


def check(model: nn.Module, *, called: str) -> None:
    """Raise ConfigError unless what the model has to average can be averaged."""
    try:
        ModelState(model)
    except UserError as error:
        raise ConfigError(f"{called}: {error}") from None


@torch.no_grad()
def _give_shapes(model: nn.Module, inputs: torch.Tensor) -> None:
    """Run lazy modules once, in evaluation mode, so that nothing but shapes and first values comes of it."""
    if any(map(is_lazy, [*model.parameters(), *model.buffers()])):
        with evaluating(model):
            model(inputs)


def _cnn(in_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
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
        nn.Linear(64, num_outputs),
    )


def _mlp(in_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(in_shape), 128),
        nn.ReLU(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, num_outputs),
    )


_NETWORKS = {"cnn": _cnn, "mlp": _mlp}
