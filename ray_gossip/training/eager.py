"""torch's optimizers without torch's compiler, which they load to tell it that it is not needed.

Each of `add_param_group`, `zero_grad`, `step`, `state_dict` imports `torch._dynamo` when it is first called, so that a
compiler that is at work leaves it alone: 2 s of CPU and 150 MB in each process that trains (torch 2.14; importing torch
takes 2 s and 370 MB). Where no compiler has been loaded, there is none to tell.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

_COMPILER = "torch._dynamo"
_TELLS = "_use_grad"  # the name of the function that torch wraps around the step of its optimizers


def keep_compiler_out() -> None:
    """From now on torch's optimizers load no compiler, in this process. Nothing changes where one is loaded already, or
    where this version of torch does it in another way. A model may be compiled afterwards as before."""
    if _COMPILER in sys.modules:
        return
    for function in vars(Optimizer).values():
        if (plain := getattr(function, "__wrapped__", None)) and function.__module__ == Optimizer.__module__:
            plain.__dict__.setdefault("__dynamo_disable", plain)  # where torch keeps what it calls instead
    for optimizer_class in vars(torch.optim).values():
        if isinstance(optimizer_class, type) and issubclass(optimizer_class, Optimizer):
            step: Any = vars(optimizer_class).get("step")
            if getattr(getattr(step, "__code__", None), "co_name", "") == _TELLS:
                optimizer_class.step = _step(step.__wrapped__)  # type: ignore[method-assign]


def _step(plain: Callable[..., Any]) -> Callable[..., Any]:
    """As torch wraps it, but for the compiler."""

    @functools.wraps(plain)
    def step(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return plain(self, *args, **kwargs)

    return step
