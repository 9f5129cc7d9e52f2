"""How ill 442 patients are a year later, from ten measurements: numbers to predict. It ships with scikit-learn."""

from __future__ import annotations

import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.nn import functional as F

from ray_gossip.data import Dataset

NUM_TRAIN = 342


def load() -> Dataset:
    inputs, labels = (torch.tensor(array, dtype=torch.float32) for array in load_diabetes(return_X_y=True))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:NUM_TRAIN], order[NUM_TRAIN:]
    inputs = (inputs - inputs[train].mean(0)) / inputs[train].std(0)
    labels = ((labels - labels[train].mean()) / labels[train].std()).unsqueeze(1)
    return Dataset(
        train_inputs=inputs[train], train_labels=labels[train], test_inputs=inputs[test], test_labels=labels[test]
    )


def build(in_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(in_shape[0], 16), nn.Tanh(), nn.Linear(16, num_outputs))


def huber(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.huber_loss(outputs, labels)


def mean_absolute_error(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs - labels).abs().mean()
