"""Which memory a tensor occupies: two names may lead to the same, and a tensor may lie on itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Memory(NamedTuple):
    """The set of bytes behind a tensor. Equal for two tensors with the same elements in any order, such as a matrix
    and its transpose."""

    device: torch.device
    start: int  # address of the first element; for what has no address, such as a sparse tensor, the object's identity
    item_bytes: int
    steps: tuple[tuple[int, int], ...]  # (stride, size) in elements, the smallest first; neighbours are joined

    @classmethod
    def of(cls, tensor: Tensor) -> Memory:
        """The memory that a tensor occupies now. Waits for no device."""
        if tensor.layout is not torch.strided or not tensor.numel() or not tensor.data_ptr():
            return cls(tensor.device, id(tensor), 0, ())
        steps: list[tuple[int, int]] = []
        for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
            if size == 1:
                continue
            if steps and stride == steps[-1][0] * steps[-1][1]:
                steps[-1] = (steps[-1][0], steps[-1][1] * size)
            else:
                steps.append((stride, size))
        return cls(tensor.device, tensor.data_ptr(), tensor.element_size(), tuple(steps))

    @property
    def end(self) -> int:
        """Address behind the last element."""
        return self.start + self.item_bytes * (1 + sum(stride * (size - 1) for stride, size in self.steps))

    @property
    def overlaps_itself(self) -> bool:
        """Whether two of its elements may share an address, as in an expanded tensor."""
        reach = 0
        for stride, size in self.steps:
            if stride <= reach:
                return True
            reach += stride * (size - 1)
        return False

    def meets(self, other: Memory) -> bool:
        """Whether the two share an address."""
        if self.device != other.device or self.end <= other.start or other.end <= self.start:
            return False
        return bool(torch.isin(self._addresses(), other._addresses()).any())

    def _addresses(self) -> Tensor:
        offsets = torch.zeros(1, dtype=torch.int64)
        for stride, size in self.steps:
            offsets = (offsets[:, None] + torch.arange(size) * stride).flatten()
        return self.start + offsets * self.item_bytes


def first_overlap(memories: Sequence[Memory]) -> tuple[int, int] | None:
    """Indices of two that share an address, if any do. Quick where each has a range of its own, as is the rule."""
    order = sorted(range(len(memories)), key=lambda index: (str(memories[index].device), memories[index].start))
    for position, first in enumerate(order):
        for second in order[position + 1 :]:
            if memories[second].device != memories[first].device or memories[second].start >= memories[first].end:
                break
            if memories[first].meets(memories[second]):
                return min(first, second), max(first, second)
    return None


def without_repetition(tensor: Tensor, *, like: Tensor | None = None) -> Tensor:
    """A view in which dimensions along which `like`, or the tensor, repeats itself have one element: an expanded tensor
    can be written to like this."""
    pattern = tensor if like is None else like
    if pattern.layout is not torch.strided:
        return tensor
    for dim, (stride, size) in enumerate(zip(pattern.stride(), pattern.shape, strict=True)):
        if stride == 0 and size > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def copy_of(tensor: Tensor) -> Tensor:
    """On the CPU, in memory of its own; an expanded tensor takes no more of it than before."""
    copy = without_repetition(tensor.detach()).to("cpu", copy=True)
    return copy if copy.shape == tensor.shape else copy.expand(tensor.shape)


def bytes_of(tensor: Tensor) -> bytes:
    """Its values, in the order of its elements."""
    plain = tensor.detach().to("cpu")
    plain = plain.dequantize() if plain.is_quantized else plain.to_dense()
    return plain.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
