"""Data sets of the user's own: what does not fit together, and batches of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ray_gossip import data
from ray_gossip.config import parse
from ray_gossip.errors import ConfigError, DataError

CPU = torch.device("cpu")


def tokens(number: int = 4, length: int = 3) -> Tensor:
    return torch.zeros(number, length, dtype=torch.int64)


def dataset(**changes: Any) -> data.Dataset:
    fields: dict[str, Any] = {
        "train_inputs": tokens(),
        "train_labels": tokens(),
        "test_inputs": tokens(),
        "test_labels": tokens(),
        "num_classes": 2,
    }
    return data.Dataset(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"train_inputs": [[1, 2]]}, "train_inputs must be a tensor, not list"),
        ({"test_inputs": tokens(0), "test_labels": tokens(0)}, "test_inputs holds no samples: its shape is [0, 3]"),
        ({"train_labels": tokens(5)}, "train_inputs has 4 samples, but train_labels 5"),
        (
            {"train_labels": tokens().float()},
            "train_labels must be int64 classes, not torch.float32; numbers have no num_classes",
        ),
        ({"test_labels": tokens() + 2}, "test_labels must lie in 0..1 (num_classes - 1), not 2..2"),
        ({"test_labels": tokens() - 100}, "test_labels is -100 everywhere: nothing is left to learn"),
        ({"train_labels": tokens()[:, 0] - 100}, "train_labels must lie in 0..1 (num_classes - 1), not -100..-100"),
        (
            {"test_inputs": tokens(4, 5)},
            "train_inputs and test_inputs must hold alike samples, not [3] torch.int64 and [5] torch.int64",
        ),
        (
            {"scale": data.Scale(mean=(0.5,), std=(0.5,))},
            "scale is for images [channels, height, width], but samples are [3]",
        ),
    ],
)
def test_a_data_set_that_does_not_fit_together_says_where(changes: dict[str, Any], line: str) -> None:
    def build() -> data.Dataset:
        return dataset(**changes)

    with pytest.raises(DataError) as error:
        data.load(parse({"data": {"factory": "my:build"}}).data, factory=build)
    assert str(error.value) == f"data.factory=my:build: {line}"


@pytest.mark.parametrize("make", [lambda: None, lambda: (1, 2)])
def test_what_is_no_data_set_is_one_line(make: Callable[[], Any]) -> None:
    with pytest.raises(ConfigError, match=r"^data\.factory=my:build returned \w+, not a ray_gossip\.data\."):
        data.load(parse({"data": {"factory": "my:build"}}).data, factory=make)


def test_batches_of_tokens_are_pieces_of_the_shard_with_their_labels() -> None:
    inputs = torch.arange(30).view(10, 3)
    batches = data.Batches(inputs, inputs + 1, batch_size=4, seed=0, device=CPU)
    for batch, labels in itertools.islice(batches, 5):
        assert batch.shape == (4, 3)
        assert labels.equal(batch + 1)
        assert set(batch[:, 0].tolist()) <= set(inputs[:, 0].tolist())
