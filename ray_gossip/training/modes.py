"""Training and evaluation mode, which belong to the user: module by module."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """All modules in evaluation mode; afterwards each in its own again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        if model.training != modes[0][1]:
            model.train(modes[0][1])  # some modules do work of their own here, such as taking adapters apart again
        for module, training in modes:
            module.training = training
