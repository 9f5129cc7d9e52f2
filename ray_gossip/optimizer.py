"""The optimizer of local SGD, by its name in torch.optim, and how its learning rate falls."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer

from ray_gossip.config import Config, OptimizerConfig
from ray_gossip.errors import ConfigError

_UNSUITED = {
    "LBFGS": "it evaluates the loss several times in a step",
    "Muon": "it takes matrices only, and networks have biases",
    "SparseAdam": "it takes sparse gradients only",
}


def check_optimizer(config: OptimizerConfig) -> Callable[..., Optimizer]:
    """The class that `optimizer.name` names.

    Raises:
        ConfigError: torch.optim has none of this name, or it cannot do local steps.
    """
    classes = {
        name: member
        for name, member in vars(torch.optim).items()
        if isinstance(member, type) and issubclass(member, Optimizer) and member is not Optimizer
    }
    if config.name in _UNSUITED:
        raise ConfigError(f"optimizer.name={config.name} cannot train here: {_UNSUITED[config.name]}; try SGD or AdamW")
    if config.name not in classes:
        # Compared in lower case: to difflib, "sgd" and "SGD" have nothing in common.
        names = {name.lower(): name for name in classes}
        close = [names[match] for match in difflib.get_close_matches(config.name.lower(), names)]
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(sorted(classes))}"
        raise ConfigError(f"optimizer.name={config.name} is not in torch.optim; {hint}")
    return classes[config.name]


def lr_factor(
    step: int, *, schedule: Literal["constant", "cosine", "linear"], local_steps: int, warmup_steps: int
) -> float:
    """Learning rate of the local step that follows `step` others, as a share of the highest.

    It rises linearly for warmup_steps, the first of which already moves, then falls to zero at local_steps.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    passed = min(1.0, (step - warmup_steps) / max(1, local_steps - warmup_steps))
    return (1.0 + math.cos(math.pi * passed)) / 2 if schedule == "cosine" else 1.0 - passed


def lr_schedule(config: Config, *, first_step: int = 0) -> Callable[[int], float]:
    """`lr_factor` of this run, for torch's LambdaLR, counted from `first_step` on."""
    factor = partial(
        lr_factor,
        schedule=config.optimizer.schedule,
        local_steps=config.train.local_steps,
        warmup_steps=config.optimizer.warmup_steps,
    )
    return lambda step: factor(first_step + step)


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> tuple[Optimizer, list[str]]:
    """The optimizer of the parameters that train, and a notice for each value that the user chose and that its class
    has no argument for."""
    optimizer_class = check_optimizer(config)
    known = inspect.signature(optimizer_class).parameters
    options: dict[str, float] = {}
    notices: list[str] = []
    for key in ("momentum", "weight_decay"):
        value: float = getattr(config, key)
        if key in known:
            options[key] = value
        elif value not in (0, OptimizerConfig.model_fields[key].default):
            notices.append(f"optimizer.{key}={value} is skipped: torch.optim.{config.name} has no {key}")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return optimizer_class(trained, lr=config.lr, **options), notices
