"""Who gets which samples.

A dealing is a pure function of the labels, the number of shards, the config and the seed: every peer computes it by
itself. With another number of peers the samples are dealt anew, so that every one of them is still seen.
"""

from __future__ import annotations

from itertools import cycle, islice

import numpy as np
import torch
from torch import Tensor

from ray_gossip.config import DataConfig
from ray_gossip.errors import ConfigError


def deal(labels: Tensor, num_shards: int, *, config: DataConfig | None = None, seed: int) -> list[Tensor]:
    """Deal samples to peers as `data.shards` says.

    Args:
        labels: [num_samples, ...]; dealt by class, a sample must have one, [num_samples] int64.

    Returns:
        Disjoint index tensors, int64, none of them empty, that together hold 0..num_samples-1.

    Raises:
        ConfigError: there are fewer samples than shards, or they are to be dealt by class and do not have one each.
    """
    config, num_samples = config or DataConfig(), len(labels)
    if num_shards > num_samples:
        raise ConfigError(
            f"swarm.num_peers={num_shards} is above the {num_samples} training samples, "
            "so that some peers would get none; lower it"
        )
    if config.shards in ("dirichlet", "label_sorted") and (labels.dim() > 1 or labels.is_floating_point()):
        is_number = labels.is_floating_point()
        has = "the labels are numbers" if is_number else f"every sample has labels {list(labels.shape[1:])}"
        raise ConfigError(f"data.shards={config.shards} deals by class, but {has}: set data.shards=iid or by_size")
    order = torch.randperm(num_samples, generator=torch.Generator().manual_seed(seed))
    if config.shards == "dirichlet":
        return _dirichlet(order, labels, num_shards, alpha=config.dirichlet_alpha, seed=seed)
    if config.shards == "by_size":
        sizes = np.fromiter(islice(cycle(config.shard_sizes), num_shards), dtype=np.float64)
        return _none_empty([*torch.split(order, _whole(sizes / sizes.sum(), num_samples))])
    if config.shards == "label_sorted":
        order = order[torch.from_numpy(np.argsort(labels.numpy()[order.numpy()], kind="stable"))]
    return list(order.tensor_split(num_shards))


def class_counts(labels: Tensor, *, num_classes: int | None) -> tuple[int, ...]:
    """How many samples of each class there are in a shard; nothing where samples have several labels, or numbers.

    Args:
        labels: [num_samples, ...].
    """
    if labels.dim() > 1 or num_classes is None:
        return ()
    return tuple(np.bincount(labels.numpy(), minlength=num_classes).tolist())


def _dirichlet(order: Tensor, labels: Tensor, num_shards: int, *, alpha: float, seed: int) -> list[Tensor]:
    """Hsu et al., Measuring the Effects of Non-Identical Data Distribution, 2019: a draw of shares for each class."""
    random = np.random.default_rng(seed)
    pieces: list[list[Tensor]] = [[] for _ in range(num_shards)]
    for label in np.unique(labels.numpy()):
        of_class = order[labels[order] == int(label)]
        shares = random.dirichlet(np.full(num_shards, alpha))
        for piece, part in zip(pieces, torch.split(of_class, _whole(shares, len(of_class))), strict=True):
            piece.append(part)
    return _none_empty([torch.cat(piece) for piece in pieces])


def _whole(shares: np.ndarray[tuple[int], np.dtype[np.float64]], total: int) -> list[int]:
    """Whole numbers that add up to `total`, each within one of its share of it."""
    ends = np.rint(np.cumsum(shares) * total).astype(int)
    ends[-1] = total  # the shares' sum is 1 but for rounding
    return [int(size) for size in np.diff(ends, prepend=0)]


def _none_empty(shards: list[Tensor]) -> list[Tensor]:
    """An empty shard takes one sample from the largest one: a peer cannot train on nothing."""
    for index, shard in enumerate(shards):
        if not len(shard):
            largest = max(range(len(shards)), key=lambda other: len(shards[other]))
            shards[index], shards[largest] = shards[largest][:1], shards[largest][1:]
    return shards
