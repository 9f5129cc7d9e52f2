"""Loss, accuracy and the user's own metrics on the test split."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from ray_gossip.data import Dataset, Normaliser
from ray_gossip.training.criterion import Criterion, Measured, Share, measured
from ray_gossip.training.modes import evaluating

# Of an evaluation's batches, to bound the memory that inputs and logits take: 1024 images of CIFAR-10, 341 of Tiny
# ImageNet, 32 texts of 128 tokens with a vocabulary of 1000
_BATCH_SIZE, _BATCH_ELEMENTS = 1024, 2**22


class EvaluationSplit:
    """The test split on a device.

    Args:
        num_samples: how many of it to evaluate on, spread evenly; None: all.
    """

    def __init__(self, dataset: Dataset, *, num_samples: int | None, device: torch.device) -> None:
        self._normalise = Normaliser(dataset.scale, device=device)
        chosen = _spread_evenly(len(dataset.test_labels), num_samples)
        self._inputs, self._labels = dataset.test_inputs[chosen].to(device), dataset.test_labels[chosen].to(device)
        elements = max(math.prod(dataset.in_shape), math.prod(dataset.label_shape) * (dataset.num_classes or 1))
        self._batch_size = max(1, min(_BATCH_SIZE, _BATCH_ELEMENTS // elements))

    def in_pieces(self, inputs: Tensor) -> Iterator[Tensor]:
        """Inputs [number, *in_shape] of the data set, normalised, and few enough at a time for the device's memory."""
        return map(self._normalise, torch.split(inputs, self._batch_size))

    def first(self, number: int) -> tuple[Tensor, Tensor]:
        """Inputs of the first samples, normalised, and their labels."""
        return self._normalise(self._inputs[:number]), self._labels[:number]

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, criterion: Criterion, *, precision: Callable[[], AbstractContextManager[None]]
    ) -> Measured:
        """Means over the split. The model's modes and statistics stay as they are.

        Args:
            precision: of the forward pass alone, as in training.
        """
        shares: dict[str, list[Share]] = defaultdict(list)
        with evaluating(model):
            label_pieces = torch.split(self._labels, self._batch_size)
            for inputs, labels in zip(self.in_pieces(self._inputs), label_pieces, strict=True):
                with precision():
                    outputs = model(inputs)
                for name, share in criterion.measure(outputs, labels).items():
                    shares[name].append(share)
        return measured(shares)


def _spread_evenly(num_samples: int, num_chosen: int | None) -> Tensor | slice:
    """An index of `num_chosen` samples out of all; None, or too many: of all, which copies nothing."""
    if num_chosen is None or num_chosen >= num_samples:
        return slice(None)
    return torch.arange(num_chosen) * num_samples // num_chosen
