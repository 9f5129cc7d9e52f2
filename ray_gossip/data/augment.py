"""Crop, flip, normalisation and cutout of whole batches: a few tensor operations, no Python per image.

The random numbers are drawn on the CPU, for a whole pass over the shard at once, and moved to the device in one
transfer. So CPU and CUDA give the same batches for a seed, and no batch waits for a transfer of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ray_gossip.config import DataConfig
from ray_gossip.data.dataset import Scale
from ray_gossip.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is done to a training image; the default is nothing."""

    padding: int = 0  # pixels of black around an image, out of which one of its old size is cropped at random
    flip: bool = False  # every second image is mirrored, at random
    cutout: int = 0  # edge of the square, at a random place inside the image, that gets the mean colour

    @property
    def is_active(self) -> bool:
        return self.padding > 0 or self.flip or self.cutout > 0


def augmentation(config: DataConfig, *, in_shape: tuple[int, ...]) -> Augmentation:
    """What the config asks for.

    Args:
        in_shape: of one sample.

    Raises:
        ConfigError: the samples are no images, or nothing would be left of one.
    """
    if not config.augments:
        return Augmentation()
    if len(in_shape) != 3:
        raise ConfigError(
            f"data.augment={config.augment} is for images [channels, height, width], but samples are {list(in_shape)}: "
            "set data.augment=none"
        )
    edge = min(in_shape[1:])
    cutout = edge // 4 if config.cutout is None else config.cutout
    if cutout >= edge:
        raise ConfigError(f"data.cutout={cutout} covers whole images of {in_shape[1]}x{in_shape[2]}: lower it")
    if config.crop_padding >= edge:
        raise ConfigError(
            f"data.crop_padding={config.crop_padding} could crop images of {in_shape[1]}x{in_shape[2]} away: lower it"
        )
    return Augmentation(padding=config.crop_padding, flip=True, cutout=cutout)


class Normaliser:
    """Turns images in uint8 into what a network takes: float32, mean 0 and variance 1. Leaves the rest as it is.

    Its constants lie on the device: made anew for a batch, they would be a transfer that the GPU waits for.
    """

    def __init__(self, scale: Scale | None, *, device: torch.device) -> None:
        self._scale = scale
        # in which a GPU's convolutions are fastest; the conversion of the type gives it for nothing
        self._layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        if scale is not None:
            # the steps of __call__ are rounded alike everywhere, a fused multiply-add would not be
            self._mean = 255 * torch.tensor(scale.mean, device=device).view(-1, 1, 1)
            self._factor = 1 / (255 * torch.tensor(scale.std, device=device).view(-1, 1, 1))

    def __call__(self, images: Tensor) -> Tensor:
        """Images [batch_size, channels, height, width], or what needs no scale."""
        if self._scale is None:
            return images
        as_floats = images.to(torch.float32, memory_format=self._layout, copy=True)
        return as_floats.sub_(self._mean).mul_(self._factor)


class Lookup:
    """A shard's samples on their device, as they are."""

    def __init__(self, inputs: Tensor, normalise: Normaliser, *, device: torch.device) -> None:
        self._inputs, self._normalise = inputs.to(device), normalise

    def draw(self, num_samples: int, generator: torch.Generator) -> list[Tensor]:
        """No random numbers."""
        return []

    def __call__(self, chosen: Tensor, drawn: Tensor) -> Tensor:
        """The samples `chosen` [batch_size] int64."""
        return self._normalise(self._inputs[chosen])


class Augmenter:
    """A shard's images on their device, from which augmented batches are made.

    They lie there padded, in one tensor, and every crop of every image is a window of its memory that begins at
    another place: to crop a batch is to select windows by their beginnings, ten times as fast as by row and column.
    """

    def __init__(
        self, images: Tensor, augmentation: Augmentation, normalise: Normaliser, *, device: torch.device
    ) -> None:
        """
        Args:
            images: [num_samples, channels, height, width], of any type.
        """
        self._augmentation, self._normalise = augmentation, normalise
        self._height, self._width = images.shape[2:]
        # [num_samples, channels, height + 2 * padding, width + 2 * padding]
        padded = F.pad(images, [augmentation.padding] * 4).to(device)
        num_channels = images.shape[1]
        self._image_stride, channel_stride, self._row_stride, _ = padded.stride()
        last = channel_stride * (num_channels - 1) + self._row_stride * (self._height - 1) + self._width - 1
        self._crops = padded.as_strided(  # [all beginnings, channels, height, width]
            (padded.numel() - last, num_channels, self._height, self._width), (1, channel_stride, self._row_stride, 1)
        )

    def draw(self, num_images: int, generator: torch.Generator) -> list[Tensor]:
        """The random numbers for images, one or more tensors of [num_images] int64 on the CPU."""
        asked, edge = self._augmentation, self._augmentation.cutout
        places = 2 * asked.padding + 1
        bounds = (places, places, 2, self._height - edge + 1, self._width - edge + 1)
        return [torch.randint(bound, (num_images,), generator=generator) for bound in bounds]

    def __call__(self, chosen: Tensor, drawn: Tensor) -> Tensor:
        """The images `chosen` [batch_size] int64, augmented as `drawn` says, [5, batch_size] int64."""
        crop_y, crop_x, flipped, cutout_y, cutout_x = drawn
        beginnings = chosen * self._image_stride + crop_y * self._row_stride + crop_x
        images = self._crops.index_select(0, beginnings)
        if self._augmentation.flip:
            images = _mirrored(images, flipped)
        images = self._normalise(images)
        if self._augmentation.cutout:
            _cut_out(images, cutout_y, cutout_x, edge=self._augmentation.cutout)
        return images


def _mirrored(images: Tensor, flipped: Tensor) -> Tensor:
    """Those images mirrored whose `flipped` is 1, [batch_size] 0 or 1. Bit by bit, a ^ ((a ^ b) & mask): on a CPU
    five times as fast as torch.where."""
    mask = flipped.to(torch.uint8).neg_().view(-1, 1, 1, 1)  # 255 or 0
    bits = images.view(torch.uint8)
    return images.flip(3).view(torch.uint8).bitwise_xor_(bits).bitwise_and_(mask).bitwise_xor_(bits).view(images.dtype)


def _cut_out(images: Tensor, top: Tensor, left: Tensor, *, edge: int) -> None:
    """Zeros, which is the mean colour, in a square of every image; in place."""
    num_images, channels, height, width = images.shape
    n, c, y, x = images.stride()
    squares = images.as_strided(
        (num_images, height - edge + 1, width - edge + 1, channels, edge, edge), (n, y, x, c, y, x)
    )
    places = (torch.arange(num_images, device=images.device), top, left)
    squares.index_put_(places, images.new_zeros(()))  # a number would be copied to the GPU, and waited for
