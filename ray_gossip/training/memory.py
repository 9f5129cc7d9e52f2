"""What an optimizer remembers from step to step, such as Adam's moments, as tensors on their way to another peer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ray_gossip.tensor_memory import copy_of

_NUMBER = "number"  # marks what is no tensor in the optimizer


def memory_of(optimizer: Optimizer) -> dict[str, Tensor]:
    """Copies on the CPU of all that it remembers, by `<kind>/<parameter>/<name>`. Empty before its first step, and
    where something of it is neither tensor nor number: then who takes it over begins without."""
    found: dict[str, Tensor] = {}
    kind = kind_of(optimizer)
    for index, state in optimizer.state_dict()["state"].items():
        if not isinstance(state, dict):  # of an optimizer that is wrapped by another
            return {}
        for name, value in state.items():
            key = f"{kind}/{index}/{name}"
            if isinstance(value, Tensor):
                found[key] = copy_of(value)
            elif isinstance(value, (int, float)):
                found[f"{key}/{_NUMBER}"] = torch.tensor(value, dtype=torch.float64)
            elif value is not None:
                return {}
    return found


def take_memory(optimizer: Optimizer, memory: Mapping[str, Tensor]) -> None:
    """Go on with what an optimizer of the same kind, for the same parameters, remembers elsewhere; learning rate and
    other hyperparameters stay. What another kind remembers, or one of other parameters, is passed over."""
    own_kind = kind_of(optimizer)
    state: dict[int, dict[str, Any]] = {}
    for key, value in memory.items():
        kind, index, name, *is_number = key.split("/")
        if kind != own_kind:
            return
        number = float(value) if is_number else 0.0
        kept = int(number) if number.is_integer() else number
        state.setdefault(int(index), {})[name] = kept if is_number else value
    if state:
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def follow_parameters(optimizer: Optimizer) -> None:
    """The model may have moved to its device since its optimizer was given something to remember: so does that."""
    for parameter, state in optimizer.state.items():
        if any(isinstance(each, Tensor) and each.dim() and each.device != parameter.device for each in state.values()):
            optimizer.load_state_dict(optimizer.state_dict())  # torch knows what of it belongs where
            return


def kind_of(optimizer: Optimizer) -> str:
    """The same for optimizers of the same class, for parameters of the same shapes in the same order."""
    shapes = [list(parameter.shape) for group in optimizer.param_groups for parameter in group["params"]]
    return f"{type(optimizer).__name__}.{hashlib.blake2b(str(shapes).encode(), digest_size=8).hexdigest()}"
