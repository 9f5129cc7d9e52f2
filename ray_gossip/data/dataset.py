"""What a data set is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

OnProgress = Callable[[int, int], None]  # (images decoded so far, images to decode)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Of images with values 0..1, per channel. Constants of a data set: all peers must agree on them."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Labelled images on the CPU, split for training and testing.

    The images may be mapped from a file: index them, and only what was asked for is read.
    """

    train_images: Tensor  # [num_train, channels, height, width] uint8; or float32, mean 0 and variance 1 already
    train_labels: Tensor  # [num_train] int64, 0..num_classes-1
    test_images: Tensor  # [num_test, channels, height, width], of the same type and scale
    test_labels: Tensor  # [num_test] int64
    num_classes: int
    scale: Scale | None = None  # of images in uint8; None: the images are scaled already

    @property
    def num_train(self) -> int:
        """Size of the training split."""
        return len(self.train_labels)

    @property
    def in_shape(self) -> tuple[int, int, int]:
        """Channels, height, width of one image."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width
