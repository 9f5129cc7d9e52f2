"""Digits, and batches."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from ray_gossip import data
from ray_gossip.config import DataConfig

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return data.load(DataConfig(name="digits"))


def numbered(num_samples: int, *, batch_size: int, seed: int = 0, device: torch.device = CPU) -> data.Batches:
    """Batches of samples whose image and label are their own number."""
    numbers = torch.arange(num_samples)
    return data.Batches(numbers.float(), numbers, batch_size=batch_size, seed=seed, device=device)


def drawn(batches: data.Batches, num_batches: int) -> Tensor:
    return torch.cat([labels for _, labels in itertools.islice(batches, num_batches)])


def test_the_images_are_those_that_scikit_learn_describes(digits: data.Dataset) -> None:
    images = torch.cat((digits.train_inputs, digits.test_inputs))
    labels = torch.cat((digits.train_labels, digits.test_labels))
    pixels = (images - images.min()) / (images.max() - images.min()) * 16
    # Figures of sklearn.datasets.load_digits, whose import takes longer than all tests of this file.
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert pixels.sum().item() == pytest.approx(561_718, abs=1)
    assert torch.allclose(pixels, pixels.round(), atol=1e-4)


def changed(dataset: data.Dataset, **tensors: Any) -> data.Dataset:
    return dataclasses.replace(dataset, **tensors)


def test_data_sets_that_differ_or_are_numbered_in_another_order_have_another_digest(digits: data.Dataset) -> None:
    digest, order = digits.digest(), torch.arange(digits.num_train).roll(1)
    assert changed(digits, train_inputs=digits.train_inputs.clone()).digest() == digest
    labels = digits.test_labels.clone()
    labels[100] = (labels[100] + 1) % 10
    others = [
        changed(digits, train_inputs=digits.train_inputs[order], train_labels=digits.train_labels[order]),
        changed(digits, train_inputs=digits.train_inputs + 1e-3, test_inputs=digits.test_inputs),
        changed(digits, test_labels=labels),
        changed(digits, train_inputs=digits.train_inputs[:-1], train_labels=digits.train_labels[:-1]),
    ]
    assert len({digest, *(other.digest() for other in others)}) == 5


def test_the_digest_of_a_large_data_set_reads_256_of_its_inputs() -> None:
    inputs, labels = torch.zeros(100_000, 4), torch.zeros(100_000, dtype=torch.int64)
    large = data.Dataset(
        train_inputs=inputs, train_labels=labels, test_inputs=inputs, test_labels=labels, num_classes=2
    )
    digest = large.digest()
    inputs[1] = 1.0  # between the first that is read and the second
    assert large.digest() == digest
    inputs[390] = 1.0
    assert large.digest() != digest


def test_training_images_have_mean_0_and_variance_1(digits: data.Dataset) -> None:
    assert digits.in_shape == (1, 8, 8)
    assert digits.train_inputs.dtype == torch.float32
    assert digits.train_labels.dtype == torch.int64
    assert digits.train_inputs.mean().item() == pytest.approx(0, abs=1e-5)
    assert digits.train_inputs.var().item() == pytest.approx(1, abs=1e-5)


def test_a_fifth_of_every_class_is_held_out(digits: data.Dataset) -> None:
    train, test = digits.train_labels.bincount(), digits.test_labels.bincount()
    assert len(test) == digits.num_classes == 10
    assert ((test / (train + test) - 0.2).abs() < 0.01).all()
    assert digits.num_train == len(digits.train_inputs) == 1797 - len(digits.test_inputs)


@pytest.mark.parametrize(("num_samples", "batch_size"), [(12, 4), (10, 4), (3, 8), (1, 5)])
def test_every_sample_is_seen_equally_often(num_samples: int, batch_size: int) -> None:
    batches = numbered(num_samples, batch_size=batch_size)
    seen = drawn(batches, 3 * num_samples)  # 3 * batch_size data_epochs
    assert batches.data_epoch == 3 * batch_size
    assert (seen.bincount(minlength=num_samples) == 3 * batch_size).all()


def test_every_data_epoch_holds_every_sample_once_in_a_new_order() -> None:
    first, second = torch.split(drawn(numbered(50, batch_size=20), 5), 50)
    assert first.sort().values.equal(torch.arange(50))
    assert second.sort().values.equal(torch.arange(50))
    assert not first.equal(second)


def test_batches_have_constant_size_and_count_what_was_seen() -> None:
    batches = numbered(10, batch_size=4)
    for num_batches in range(1, 8):
        images, labels = next(batches)
        assert len(images) == len(labels) == 4
        assert images.equal(labels.float())
        assert batches.samples == 4 * num_batches
        assert batches.data_epoch == pytest.approx(0.4 * num_batches)


def test_batches_depend_on_their_seed_and_on_nothing_else() -> None:
    first = drawn(numbered(50, batch_size=8, seed=1), 20)
    torch.rand(3)
    assert first.equal(drawn(numbered(50, batch_size=8, seed=1), 20))
    assert not first.equal(drawn(numbered(50, batch_size=8, seed=2), 20))


def test_an_empty_shard_has_no_batches() -> None:
    with pytest.raises(ValueError, match="without samples"):
        numbered(0, batch_size=4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cpu_and_cuda_give_the_same_batches() -> None:
    on_cuda = drawn(numbered(50, batch_size=8, device=torch.device("cuda")), 20)
    assert on_cuda.cpu().equal(drawn(numbered(50, batch_size=8), 20))
