"""Statistics of BatchNorm measured afresh, as they must be where parameters are the mean of several models'."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def measured_layers(model: nn.Module) -> list[_BatchNorm]:
    """Layers whose statistics training moves. One that the user has put into evaluation mode keeps its own."""
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.training and module.track_running_stats
    ]


@torch.no_grad()
def measure_afresh(
    layers: Sequence[_BatchNorm], forward: Callable[[Tensor], object], batches: Iterable[Tensor]
) -> None:
    """Forget the layers' statistics and take the mean over these batches; all modules stay in their mode.

    torch.optim.swa_utils.update_bn does this to all layers, frozen ones too.
    """
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # then torch takes the mean of all batches
    try:
        for inputs in batches:
            forward(inputs)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
