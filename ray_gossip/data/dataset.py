"""What a data set is."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ray_gossip.errors import DataError
from ray_gossip.tensor_memory import bytes_of

OnProgress = Callable[[int, int], None]  # (images decoded so far, images to decode)

IGNORED = -100  # a label that counts neither in the loss nor in the accuracy, as in torch's cross_entropy: padding

_DIGESTED = 256  # inputs of a split that its digest reads


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Of images with values 0..1, per channel. Constants of a data set: all peers must agree on them."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Labelled samples on the CPU, split for training and testing: images, tokens, or anything else in tensors.

    A sample has one label, its class, or many, such as the token that follows each of its own. Or its labels are
    numbers to be predicted. The inputs may be mapped from a file: index them, and only what was asked for is read.

    Raises:
        DataError: types or shapes do not fit together; one line that says which.
    """

    # [num_train, *in_shape]. Images: [num_train, channels, height, width] uint8, or float32 with mean 0 and variance 1.
    # Tokens: [num_train, length] int64.
    train_inputs: Tensor
    # [num_train, *label_shape] int64, 0..num_classes-1; where a sample has many, also IGNORED. Numbers: float32.
    train_labels: Tensor
    test_inputs: Tensor  # [num_test, *in_shape], of the same type and scale
    test_labels: Tensor  # [num_test, *label_shape], of the same type
    num_classes: int | None = None  # of next-token labels: size of the vocabulary; None: the labels are numbers
    scale: Scale | None = None  # of images in uint8; None: the inputs go into the network as they are

    def __post_init__(self) -> None:
        for split in ("train", "test"):
            inputs, labels = getattr(self, f"{split}_inputs"), getattr(self, f"{split}_labels")
            for name, tensor in ((f"{split}_inputs", inputs), (f"{split}_labels", labels)):
                if not isinstance(tensor, Tensor):
                    raise DataError(f"{name} must be a tensor, not {type(tensor).__name__}")
                if tensor.dim() == 0 or len(tensor) == 0:
                    raise DataError(f"{name} holds no samples: its shape is {list(tensor.shape)}")
            if len(inputs) != len(labels):
                raise DataError(f"{split}_inputs has {len(inputs):,} samples, but {split}_labels {len(labels):,}")
            self._check_labels(f"{split}_labels", labels)
        for kind in ("inputs", "labels"):
            train, test = getattr(self, f"train_{kind}"), getattr(self, f"test_{kind}")
            if (train.shape[1:], train.dtype) != (test.shape[1:], test.dtype):
                raise DataError(
                    f"train_{kind} and test_{kind} must hold alike samples, not {list(train.shape[1:])} {train.dtype} "
                    f"and {list(test.shape[1:])} {test.dtype}"
                )
        if self.scale is not None and not self.has_images:
            raise DataError(f"scale is for images [channels, height, width], but samples are {list(self.in_shape)}")

    def digest(self) -> str:
        """A short digest by which peers find that their data differ, or are numbered in another order: of all labels,
        and of inputs at even distances. Reads 2 x 256 inputs, so that it is cheap for a file of gigabytes."""
        digest = hashlib.blake2b(digest_size=8)
        for inputs, labels in ((self.train_inputs, self.train_labels), (self.test_inputs, self.test_labels)):
            chosen = torch.arange(_DIGESTED) * len(inputs) // _DIGESTED  # repeats where there are fewer
            digest.update(f"{list(inputs.shape)} {inputs.dtype} {list(labels.shape)} {self.num_classes}".encode())
            digest.update(bytes_of(labels))
            digest.update(bytes_of(inputs[chosen]))
        digest.update(repr(self.scale).encode())
        return digest.hexdigest()

    def _check_labels(self, name: str, labels: Tensor) -> None:
        if self.num_classes is None:
            if labels.dtype != torch.float32:
                raise DataError(
                    f"{name} is {labels.dtype}: give num_classes and int64 classes, or float32 numbers to be predicted"
                )
            if not torch.isfinite(labels).all():
                raise DataError(f"{name} holds numbers that are not finite")
            return
        if labels.dtype != torch.int64:
            raise DataError(f"{name} must be int64 classes, not {labels.dtype}; numbers have no num_classes")
        if labels.dim() > 1:
            labels = labels[labels != IGNORED]
            if not len(labels):
                raise DataError(f"{name} is {IGNORED} everywhere: nothing is left to learn")
        lowest, highest = int(labels.min()), int(labels.max())
        if not 0 <= lowest <= highest < self.num_classes:
            raise DataError(f"{name} must lie in 0..{self.num_classes - 1} (num_classes - 1), not {lowest}..{highest}")

    @property
    def num_train(self) -> int:
        """Size of the training split."""
        return len(self.train_labels)

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Of one sample: an image's is channels, height, width."""
        return tuple(self.train_inputs.shape[1:])

    @property
    def label_shape(self) -> tuple[int, ...]:
        """Of one sample's labels; () where a sample has one, its class."""
        return tuple(self.train_labels.shape[1:])

    @property
    def num_outputs(self) -> int:
        """Of a network that predicts one label of a sample, or all of its numbers."""
        return math.prod(self.label_shape) if self.num_classes is None else self.num_classes

    @property
    def labels_are(self) -> str:
        """In words."""
        if self.num_classes is None:
            return f"{self.num_outputs} number{'s' * (self.num_outputs != 1)} to predict"
        return f"{self.num_classes} classes"

    @property
    def has_images(self) -> bool:
        """Whether a sample looks like an image, [channels, height, width]."""
        return len(self.in_shape) == 3
