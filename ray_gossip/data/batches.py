"""Endless batches from one shard, made on the device."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ray_gossip.data.augment import Augmentation, Augmenter, Lookup, Normaliser
from ray_gossip.data.dataset import Scale

Batch = tuple[Tensor, Tensor]  # inputs [batch_size, *in_shape], labels [batch_size, *label_shape]


class Batches(Iterator[Batch]):
    """Endless batches of constant size from one shard, which it holds on the device.

    The samples are shuffled anew for each data_epoch. What one data_epoch leaves over opens the first batch
    of the next: nothing is dropped, so every sample is seen equally often; a shard smaller than a batch works.

    Args:
        inputs: [num_samples, *in_shape]; images in uint8 where there is a scale.
        labels: [num_samples, *label_shape].
        augmentation: what is done to images; default: nothing.
        scale: how to normalise images; None: nothing is normalised.
    """

    def __init__(
        self,
        inputs: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        seed: int,
        device: torch.device,
        augmentation: Augmentation | None = None,
        scale: Scale | None = None,
    ) -> None:
        if not len(labels):
            raise ValueError("a shard without samples has no batches")
        self.samples = 0  # handed out so far
        self.batch_size = batch_size
        self._labels = labels.to(device)
        normalise = Normaliser(scale, device=device)
        self._inputs: Augmenter | Lookup
        if augmentation is not None and augmentation.is_active:
            self._inputs = Augmenter(inputs, augmentation, normalise, device=device)
        else:
            self._inputs = Lookup(inputs, normalise, device=device)
        # On the CPU whatever the device is, so that CPU and CUDA give the same batches for a seed.
        self._generator = torch.Generator().manual_seed(seed)
        self._upcoming = self._drawn()  # for samples yet to be handed out, in order

    @property
    def num_samples(self) -> int:
        """Size of the shard."""
        return len(self._labels)

    @property
    def data_epoch(self) -> float:
        """Passes over the shard so far."""
        return self.samples / self.num_samples

    def __next__(self) -> Batch:
        while self._upcoming.shape[1] < self.batch_size:
            self._upcoming = torch.cat((self._upcoming, self._drawn()), dim=1)
        upcoming, self._upcoming = self._upcoming[:, : self.batch_size], self._upcoming[:, self.batch_size :]
        self.samples += self.batch_size
        chosen = upcoming[0]
        return self._inputs(chosen, upcoming[1:]), self._labels[chosen]

    def skip(self, num_samples: int) -> None:
        """Go on as if so many had been handed out."""
        left = num_samples
        self.samples += left
        while left > self._upcoming.shape[1]:
            left -= self._upcoming.shape[1]
            self._upcoming = self._drawn()
        self._upcoming = self._upcoming[:, left:]

    def _drawn(self) -> Tensor:
        """Order and augmentation of one data_epoch, [1 + random numbers of a sample, num_samples] int64 on device."""
        order = torch.randperm(self.num_samples, generator=self._generator)
        drawn = torch.stack([order, *self._inputs.draw(self.num_samples, self._generator)])
        device = self._labels.device
        # from pinned memory, so that the transfer does not wait for what the GPU has yet to do
        return drawn.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else drawn
