"""scikit-learn's handwritten digits: 1,797 images of 8x8 pixels, 0..16, in ten classes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ray_gossip.config import DataConfig
from ray_gossip.data.dataset import Dataset, OnProgress
from ray_gossip.errors import DataError


def load(config: DataConfig, *, on_progress: OnProgress | None = None) -> Dataset:
    """Every fifth image of each class is for testing."""
    table = torch.from_numpy(np.loadtxt(_file(), delimiter=","))  # [1797, 64 pixels + label] float64
    images = table[:, :-1].reshape(-1, 1, 8, 8).float()
    labels = table[:, -1].long()
    held_out = _every_fifth_of_each_class(labels, num_classes=10)
    mean, std = images[~held_out].mean(), images[~held_out].std()
    images = (images - mean) / std
    return Dataset(
        train_inputs=images[~held_out],
        train_labels=labels[~held_out],
        test_inputs=images[held_out],
        test_labels=labels[held_out],
        num_classes=10,
    )


def _file() -> Path:
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
