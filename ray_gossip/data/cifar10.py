"""CIFAR-10 as it is published (https://www.cs.toronto.edu/~kriz/cifar.html): six pickled batches. torchvision reads."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity

from ray_gossip.config import DataConfig
from ray_gossip.data.dataset import Dataset, OnProgress, Scale
from ray_gossip.data.download import download
from ray_gossip.data.node_cache import root_of
from ray_gossip.errors import DataError

# over the 50,000 training images
_SCALE = Scale(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))


def load(config: DataConfig, *, on_progress: OnProgress | None = None) -> Dataset:
    """Its five training batches, and its test batch for testing. Every file's checksum is compared."""
    root = root_of(config)
    if config.download:
        fetch = partial(CIFAR10, str(root), download=True)
        download(CIFAR10.url, config, root=root, quiet=on_progress is None, fetch=fetch)
    try:
        train, test = CIFAR10(str(root), train=True), CIFAR10(str(root), train=False)
    except Exception as error:  # a missing or damaged file is a RuntimeError; what a pickle raises is anything
        raise DataError(f"data.name=cifar10: {_what_is_wrong(root, error)}") from error
    return Dataset(
        train_inputs=_planar(train.data),
        train_labels=torch.tensor(train.targets),
        test_inputs=_planar(test.data),
        test_labels=torch.tensor(test.targets),
        num_classes=len(train.classes),
        scale=_SCALE,
    )


def _planar(images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> torch.Tensor:
    """[num_images, height, width, channels] -> [num_images, channels, height, width]: the layout of the files."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def _what_is_wrong(root: Path, error: Exception) -> str:
    fetch = f"fetch {CIFAR10.url} and unpack it in data.root={root}, or set data.download=true"
    folder = root / CIFAR10.base_folder
    if not folder.is_dir():
        return f"there is no {folder}; {fetch}"
    meta = (CIFAR10.meta["filename"], CIFAR10.meta["md5"])
    for name, md5 in (*CIFAR10.train_list, *CIFAR10.test_list, meta):
        if not (folder / name).is_file():
            return f"{folder / name} is missing; {fetch}"
        if not check_integrity(str(folder / name), md5):
            return f"{folder / name} is damaged, its checksum is wrong; {fetch}"
    return f"cannot read {folder}: {error}; {fetch}"
