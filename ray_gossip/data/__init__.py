"""Data sets, their shards, and batches that are made on the device.

There is no DataLoader: a peer's shard lies on its device as one tensor, and a batch is a few operations on it.

    dataset.py        what a data set is: images, tokens, anything in tensors with classes for labels
    digits.py  cifar10.py  tiny_imagenet.py      one each
    node_cache.py     decoded images on disk, made once per node
    shards.py         who gets which samples
    augment.py        crop, flip, cutout, normalisation of whole batches
    batches.py        endless batches from one shard

Nothing here touches a GPU before `Batches` is built.
"""

from __future__ import annotations

from importlib import import_module

from ray_gossip.config import DataConfig
from ray_gossip.data.augment import Augmentation, Normaliser, augmentation
from ray_gossip.data.batches import Batch, Batches
from ray_gossip.data.dataset import IGNORED, Dataset, OnProgress, Scale
from ray_gossip.data.shards import class_counts, deal
from ray_gossip.errors import DataError
from ray_gossip.factory import Factory, make

__all__ = [
    "IGNORED",
    "Augmentation",
    "Batch",
    "Batches",
    "Dataset",
    "Normaliser",
    "OnProgress",
    "Scale",
    "augmentation",
    "class_counts",
    "deal",
    "load",
]


def load(config: DataConfig, *, factory: Factory | None = None, on_progress: OnProgress | None = None) -> Dataset:
    """The data set that `data.name` or `data.factory` names. Its test split depends on no seed, so that all runs
    compare.

    Waits at most `data.prepare_s` for another process of this node that is preparing the same.

    Args:
        factory: goes before what `data.factory` names.
        on_progress: told how many of how many images are decoded, where they have to be.

    Raises:
        DataError: one line that says what is missing or damaged, what to fetch and where to put it.
        ConfigError: the factory is not there, or is none.
    """
    if config.factory is not None:
        return _own(config, config.factory, factory)
    # its loader is imported now: torchvision alone takes longer than everything else together
    loader = import_module(f"ray_gossip.data.{config.name}")
    dataset: Dataset = loader.load(config, on_progress=on_progress)
    return dataset


def _own(config: DataConfig, name: str, factory: Factory | None) -> Dataset:
    try:
        dataset: Dataset = make("data.factory", name, factory, returns=Dataset, args=config.factory_args)
    except DataError as error:
        raise DataError(f"data.factory={name}: {error}") from error
    return dataset
