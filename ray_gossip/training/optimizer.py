"""The optimizer of local SGD, by its name in torch.optim or of the user's own, and how its learning rate falls."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Container, Iterable
from functools import partial
from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer

from ray_gossip.config import Config, OptimizerConfig
from ray_gossip.config.mistakes import hint, shown
from ray_gossip.errors import ConfigError
from ray_gossip.factory import make
from ray_gossip.training.eager import keep_compiler_out

_UNSUITED = {
    "LBFGS": "it evaluates the loss several times in a step",
    "Muon": "it takes matrices only, and networks have biases",
    "SparseAdam": "it takes sparse gradients only",
}
_OPTIONS = ("momentum", "weight_decay")  # keys of the config that only some optimizers have


def check_optimizer(config: OptimizerConfig) -> None:
    """Raise ConfigError if torch.optim has no class of this name, it cannot do local steps, or its arguments are wrong:
    it is made, for a tensor that nobody needs."""
    keep_compiler_out()
    if config.factory is None:
        _named(config, [nn.Parameter(torch.zeros(2, 2))])


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> tuple[Optimizer, list[str]]:
    """The optimizer of the parameters that train, and a notice for each value that the user chose and that it does not
    take. Raises ConfigError."""
    keep_compiler_out()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.factory is None:
        return _named(config, trained)
    args = {**config.args, "params": trained}
    optimizer: Optimizer = make(
        "optimizer.factory", config.factory, None, returns=Optimizer, args=args, offered={"lr": config.lr}
    )
    return optimizer, _skipped(config, (), of="a call of optimizer.factory")


def _named(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> tuple[Optimizer, list[str]]:
    optimizer_class = _class_of(config.name or "")
    known = inspect.signature(optimizer_class).parameters
    for key in config.args:
        if key not in known:
            others = known.keys() - {"params", "lr", *_OPTIONS}
            raise ConfigError(f"optimizer.args.{key} is unknown to torch.optim.{config.name}; {hint(key, others)}")
    options = {key: getattr(config, key) for key in _OPTIONS if key in known}
    try:
        optimizer = optimizer_class(parameters, lr=config.lr, **options, **config.args)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"optimizer.args={shown(config.args)}: torch.optim.{config.name} says: {error}") from error
    return optimizer, _skipped(config, options, of=f"torch.optim.{config.name}")


def _skipped(config: OptimizerConfig, taken: Container[str], *, of: str) -> list[str]:
    return [
        f"optimizer.{key}={value} is skipped: {of} has no {key}"
        for key in _OPTIONS
        if key not in taken and (value := getattr(config, key)) not in (0, OptimizerConfig.model_fields[key].default)
    ]


def _class_of(name: str) -> Callable[..., Optimizer]:
    classes = {
        known: member
        for known, member in vars(torch.optim).items()
        if isinstance(member, type) and issubclass(member, Optimizer) and member is not Optimizer
    }
    if name in _UNSUITED:
        raise ConfigError(f"optimizer.name={name} cannot train here: {_UNSUITED[name]}; try SGD or AdamW")
    if name not in classes:
        raise ConfigError(f"optimizer.name={name} is not in torch.optim; {hint(name, classes)}")
    return classes[name]


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
