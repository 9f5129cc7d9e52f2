"""Residual networks for small images, from torchvision's classes. The only file that loads its models."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from ray_gossip.config import ModelConfig

# from this height on, a max-pool behind the stem keeps the cost at that of 32x32 images
_POOLED_FROM = 64


def build(config: ModelConfig, *, in_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """resnet18, resnet20 or resnet50, for images of `in_shape`: channels, height, width."""
    norm: Callable[[int], nn.Module] = _group_norm if config.norm == "group" else nn.BatchNorm2d
    if config.name == "resnet20":
        return ResNet20(in_shape[0], num_outputs, norm)
    if config.name == "resnet18":
        network = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=num_outputs, norm_layer=norm)
    else:
        network = ResNet(Bottleneck, [3, 4, 6, 3], num_classes=num_outputs, norm_layer=norm)
    network.conv1 = _stem(in_shape[0], 64)
    if config.name == "resnet18" or min(in_shape[1:]) < _POOLED_FROM:
        network.maxpool = nn.Identity()
    built: nn.Module = network
    return built


class ResNet20(nn.Sequential):
    """He et al., Deep Residual Learning for Image Recognition, 2015, section 4.2: 3 stages of 3 blocks with 16, 32
    and 64 channels; shortcuts without parameters (option A)."""

    def __init__(self, in_channels: int, num_outputs: int, norm: Callable[[int], nn.Module]) -> None:
        blocks: list[nn.Module] = []
        channels = 16
        for width in (16, 32, 64):
            for _ in range(3):
                grows = width != channels
                shortcut = _Shortcut(width - channels) if grows else None
                blocks.append(BasicBlock(channels, width, 2 if grows else 1, downsample=shortcut, norm_layer=norm))
                channels = width
        super().__init__(
            _stem(in_channels, 16),
            norm(16),
            nn.ReLU(inplace=True),
            *blocks,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, num_outputs),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # as torchvision's ResNet does
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class _Shortcut(nn.Module):
    """Half the height and width, and `more` channels of zeros."""

    def __init__(self, more: int) -> None:
        super().__init__()
        self.more = more

    def forward(self, images: Tensor) -> Tensor:
        return F.pad(images[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.more))


def _stem(in_channels: int, channels: int) -> nn.Module:
    """Instead of ImageNet's 7x7 with stride 2, which leaves little of a small image."""
    stem = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    return stem


def _group_norm(channels: int) -> nn.Module:
    """Wu and He, Group Normalization, 2018: 32 groups; fewer where a group would have less than 4 channels."""
    return nn.GroupNorm(min(32, max(1, channels // 4)), channels)
