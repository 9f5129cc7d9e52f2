"""Data sets, their shards, and batches that are made on the device.

There is no DataLoader: a peer's shard lies on its device as one tensor, and a batch is one look-up in it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ray_gossip.config import DataConfig
from ray_gossip.errors import ConfigError, DataError

Batch = tuple[Tensor, Tensor]  # images [batch_size, channels, height, width], labels [batch_size]


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Labelled images on the CPU, split for training and testing."""

    train_images: Tensor  # [num_train, channels, height, width] float32, mean 0 and variance 1
    train_labels: Tensor  # [num_train] int64, 0..num_classes-1
    test_images: Tensor  # [num_test, channels, height, width] float32, scaled as the training images are
    test_labels: Tensor  # [num_test] int64
    num_classes: int

    @property
    def num_train(self) -> int:
        """Size of the training split."""
        return len(self.train_labels)

    @property
    def in_shape(self) -> tuple[int, int, int]:
        """Channels, height, width of one image."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width


def load(config: DataConfig) -> Dataset:
    """The data set that `data.name` names. Its test split depends on no seed, so that all runs compare.

    Raises:
        DataError: one line that says what is missing.
    """
    return _LOADERS[config.name]()


def shards(num_samples: int, num_shards: int, *, seed: int) -> list[Tensor]:
    """Deal samples to peers at random.

    Returns:
        Disjoint index tensors, int64, that together hold 0..num_samples-1; their sizes differ by at most one.
    """
    if num_shards > num_samples:
        raise ConfigError(
            f"swarm.num_peers={num_shards} is above the {num_samples} training samples, "
            "so that some peers would get none; lower it"
        )
    order = torch.randperm(num_samples, generator=torch.Generator().manual_seed(seed))
    return list(order.tensor_split(num_shards))


class Batches(Iterator[Batch]):
    """Endless batches of constant size from one shard, which it holds on the device.

    The samples are shuffled anew for each data_epoch. What one data_epoch leaves over opens the first batch
    of the next: nothing is dropped, so every sample is seen equally often; a shard smaller than a batch works.
    """

    def __init__(self, images: Tensor, labels: Tensor, *, batch_size: int, seed: int, device: torch.device) -> None:
        if not len(labels):
            raise ValueError("a shard without samples has no batches")
        self.samples = 0  # handed out so far
        self._images, self._labels = images.to(device), labels.to(device)
        self.batch_size = batch_size
        # On the CPU whatever the device is, so that CPU and CUDA give the same batches for a seed.
        self._generator = torch.Generator().manual_seed(seed)
        self._upcoming = self._shuffled()  # samples yet to be handed out, in order, int64, on device

    @property
    def num_samples(self) -> int:
        """Size of the shard."""
        return len(self._labels)

    @property
    def data_epoch(self) -> float:
        """Passes over the shard so far."""
        return self.samples / self.num_samples

    def __next__(self) -> Batch:
        while len(self._upcoming) < self.batch_size:
            self._upcoming = torch.cat((self._upcoming, self._shuffled()))
        chosen, self._upcoming = self._upcoming[: self.batch_size], self._upcoming[self.batch_size :]
        self.samples += self.batch_size
        return self._images[chosen], self._labels[chosen]

    def _shuffled(self) -> Tensor:
        """The order of one data_epoch, in one transfer: one per batch would hold up a GPU."""
        order = torch.randperm(self.num_samples, generator=self._generator)
        return order.to(self._labels.device, non_blocking=True)


def _digits() -> Dataset:
    """scikit-learn's handwritten digits: 1,797 images of 8x8 pixels, 0..16, in ten classes."""
    table = torch.from_numpy(np.loadtxt(_digits_file(), delimiter=","))  # [1797, 64 pixels + label] float64
    images = table[:, :-1].reshape(-1, 1, 8, 8).float()
    labels = table[:, -1].long()
    held_out = _every_fifth_of_each_class(labels, num_classes=10)
    mean, std = images[~held_out].mean(), images[~held_out].std()
    images = (images - mean) / std
    return Dataset(
        train_images=images[~held_out],
        train_labels=labels[~held_out],
        test_images=images[held_out],
        test_labels=labels[held_out],
        num_classes=10,
    )


def _digits_file() -> Path:
    """What `sklearn.datasets.load_digits` reads. To call it would cost every peer the import of scikit-learn:
    3.5 s on a slow core, against 0.25 s for the file."""
    sklearn = importlib.util.find_spec("sklearn")
    if sklearn is None or sklearn.origin is None:
        raise DataError("data.name=digits is shipped with scikit-learn: pip install scikit-learn")
    path = Path(sklearn.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if not path.is_file():
        raise DataError(f"data.name=digits: {path} is missing; reinstall scikit-learn")
    return path


def _every_fifth_of_each_class(labels: Tensor, *, num_classes: int) -> Tensor:
    """A stratified fifth as a mask, [num_samples] bool. It draws no random numbers: the same everywhere."""
    mask = torch.zeros_like(labels, dtype=torch.bool)
    for label in range(num_classes):
        mask[(labels == label).nonzero()[::5]] = True
    return mask


_LOADERS = {"digits": _digits}
