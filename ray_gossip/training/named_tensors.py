"""The parameters and buffers of a model, by every name that leads to them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

_STATISTICS = ("running_mean", "running_var")
_MOVED_BY_A_FORWARD_PASS = (*_STATISTICS, "num_batches_tracked")


class NamedTensor(NamedTuple):
    """A tensor of a model, by one of its names."""

    name: str
    tensor: Tensor
    module: nn.Module  # that holds it
    is_persistent: bool  # parameters are, and the buffers of the state_dict

    @property
    def is_statistic(self) -> bool:
        """Whether it is a running statistic that a forward pass moves now."""
        is_running = self.is_persistent and self.tensor.is_floating_point() and self._attribute in _STATISTICS
        return is_running and self._is_tracked

    @property
    def is_moving(self) -> bool:
        """Whether it is a running statistic, or its count, that a forward pass moves now."""
        return self._is_tracked and self._attribute in _MOVED_BY_A_FORWARD_PASS

    @property
    def _attribute(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def _is_tracked(self) -> bool:
        module = self.module
        tracks = module.track_running_stats if isinstance(module, _NormBase) else hasattr(module, "momentum")
        return module.training and bool(tracks)


def walk(model: nn.Module) -> Iterator[NamedTensor]:
    """Every parameter and buffer by every name, in the order of the model."""
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            yield NamedTensor(prefix + name, parameter, module, True)
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
            yield NamedTensor(prefix + name, buffer, module, name not in module._non_persistent_buffers_set)
