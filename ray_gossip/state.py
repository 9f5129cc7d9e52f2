"""What peers average of a model: its *state*, seen as one flat vector in host memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class ModelState:
    """All parameters of a model, then all its floating-point buffers, then SGD's momentum if it is averaged too.

    Others read and change it as [state_size] float32 on the CPU. The model may move to another device at any time: its
    tensors are looked up anew for every round.

    Args:
        momentum_of: SGD whose momentum is part of the state; built on the model's device.
    """

    def __init__(self, model: nn.Module, *, momentum_of: Optimizer | None = None) -> None:
        self._model = model
        self._momentum = _momentum(momentum_of) if momentum_of is not None else []
        self._upload: _Upload | None = None

    @torch.no_grad()
    def read(self, out: Tensor) -> None:
        """Copy the state into `out`, [state_size] float32 on the CPU. Waits for the steps queued so far."""
        pieces = [tensor.reshape(-1) for tensor in self._tensors()]
        if pieces[0].device == out.device:
            torch.cat(pieces, out=out)
        else:
            out.copy_(torch.cat(pieces))  # one transfer, however many small tensors there are

    @torch.no_grad()
    def add(self, delta: Tensor) -> None:
        """x <- x + delta, with delta [state_size] float32 on the CPU."""
        tensors = self._tensors()
        torch._foreach_add_(tensors, self._on_device(delta, tensors))

    @torch.no_grad()
    def write(self, flat: Tensor) -> None:
        """x <- flat, with flat [state_size] float32 on the CPU."""
        tensors = self._tensors()
        torch._foreach_copy_(tensors, self._on_device(flat, tensors))

    def _tensors(self) -> list[Tensor]:
        return [*averaged_tensors(self._model), *self._momentum]

    def _on_device(self, flat: Tensor, tensors: list[Tensor]) -> list[Tensor]:
        """`flat` on the tensors' device, as views with their shapes."""
        device = tensors[0].device
        if self._upload is None or self._upload.device != device:
            self._upload = _Upload(device)
        pieces = torch.split(self._upload(flat), [tensor.numel() for tensor in tensors])
        return [piece.view_as(tensor) for piece, tensor in zip(pieces, tensors, strict=True)]


def averaged_tensors(model: nn.Module) -> list[Tensor]:
    """The live tensors that make up the state, in the order that the model defines: the same on every peer.

    Integer buffers, such as BatchNorm's num_batches_tracked, stay each peer's own: a mean of counts is none.
    """
    buffers = (buffer for buffer in model.buffers() if buffer.is_floating_point())
    return [*model.parameters(), *buffers]


def state_size(model: nn.Module, *, with_momentum: bool = False) -> int:
    """Number of elements of the state."""
    parameters = sum(parameter.numel() for parameter in model.parameters()) if with_momentum else 0
    return sum(tensor.numel() for tensor in averaged_tensors(model)) + parameters


def _momentum(optimizer: Optimizer) -> list[Tensor]:
    """SGD's momentum buffers, made now where there is none yet: zeros give the same first step as the copy of the
    gradient that SGD makes."""
    buffers = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            buffers.append(state["momentum_buffer"])
    return buffers


class _Upload:
    """Brings flat vectors to the device. To a GPU by way of pinned memory: from the averager's buffer itself, the
    transfer would wait for all local steps that are queued."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pinned: Tensor | None = None
        self._done = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __call__(self, flat: Tensor) -> Tensor:
        if self._done is None:
            return flat.to(self.device)
        if self._pinned is None or len(self._pinned) < len(flat):
            self._pinned = torch.empty_like(flat, pin_memory=True)
        self._done.synchronize()  # the transfer before this one has left the pinned memory
        staged = self._pinned[: len(flat)].copy_(flat)
        on_device = staged.to(self.device, non_blocking=True)
        self._done.record()
        return on_device
