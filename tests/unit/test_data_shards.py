"""Who gets which samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ray_gossip import data
from ray_gossip.config import DataConfig
from ray_gossip.errors import ConfigError

IID = DataConfig()
DIRICHLET = DataConfig(shards="dirichlet", dirichlet_alpha=0.1)
SORTED = DataConfig(shards="label_sorted")
BY_SIZE = DataConfig(shards="by_size", shard_sizes=(1, 4))
ALL = [IID, DIRICHLET, SORTED, BY_SIZE]


def balanced(num_classes: int, each: int) -> Tensor:
    """Labels in a shuffled order."""
    labels = torch.arange(num_classes).repeat(each)
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]


def counts(labels: Tensor, shards: list[Tensor]) -> list[tuple[int, ...]]:
    return [data.class_counts(labels[shard], num_classes=int(labels.max()) + 1) for shard in shards]


@pytest.mark.parametrize("config", ALL, ids=lambda config: config.shards)
@given(
    labels=st.lists(st.integers(0, 5), min_size=12, max_size=80),
    num_shards=st.integers(1, 12),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_shards_are_disjoint_cover_everything_and_none_is_empty(
    config: DataConfig, labels: list[int], num_shards: int, seed: int
) -> None:
    dealt = data.deal(torch.tensor(labels), num_shards, config=config, seed=seed)
    assert len(dealt) == num_shards
    assert all(len(shard) > 0 for shard in dealt)
    assert torch.cat(dealt).sort().values.equal(torch.arange(len(labels)))


@pytest.mark.parametrize("config", ALL, ids=lambda config: config.shards)
def test_the_same_seed_gives_the_same_shards_and_another_seed_others(config: DataConfig) -> None:
    labels = balanced(10, 100)
    first, again, other = (torch.cat(data.deal(labels, 4, config=config, seed=seed)) for seed in (7, 7, 8))
    assert first.equal(again)
    assert not first.equal(other)


@pytest.mark.parametrize("config", ALL, ids=lambda config: config.shards)
def test_when_a_peer_is_added_or_gone_every_sample_is_still_seen(config: DataConfig) -> None:
    labels = balanced(10, 100)
    for num_shards in (3, 4, 5):
        dealt = data.deal(labels, num_shards, config=config, seed=0)
        assert torch.cat(dealt).sort().values.equal(torch.arange(1000))


def test_iid_shards_differ_by_at_most_one_sample_and_have_all_classes() -> None:
    labels = balanced(10, 101)
    shards = data.deal(labels, 4, seed=0)
    assert sorted(len(shard) for shard in shards) == [252, 252, 253, 253]
    assert all(min(each) > 10 for each in counts(labels, shards))


def test_label_sorted_shards_are_equal_and_have_few_classes() -> None:
    labels = balanced(10, 100)
    shards = data.deal(labels, 4, config=SORTED, seed=0)
    assert [len(shard) for shard in shards] == [250] * 4
    assert [sum(count > 0 for count in each) for each in counts(labels, shards)] == [3, 3, 3, 3]
    assert counts(labels, shards)[0] == (100, 100, 50, 0, 0, 0, 0, 0, 0, 0)


def test_shards_by_size_are_as_unequal_as_they_were_asked_to_be() -> None:
    labels = balanced(10, 100)
    assert [len(shard) for shard in data.deal(labels, 4, config=BY_SIZE, seed=0)] == [100, 400, 100, 400]
    assert [len(shard) for shard in data.deal(labels, 3, config=BY_SIZE, seed=0)] == [167, 666, 167]


def test_a_small_dirichlet_alpha_leaves_a_peer_few_classes_and_a_large_one_is_close_to_iid() -> None:
    labels = balanced(10, 500)
    even = DataConfig(shards="dirichlet", dirichlet_alpha=1000)

    def share_of_three_classes(config: DataConfig) -> float:
        dealt = counts(labels, data.deal(labels, 8, config=config, seed=0))
        return sum(sum(sorted(each)[-3:]) / sum(each) for each in dealt) / len(dealt)

    assert share_of_three_classes(DIRICHLET) > 0.8
    assert share_of_three_classes(even) < 0.35


@pytest.mark.parametrize("alpha", [1e-9, 1e-3, 1e9])
def test_extreme_alphas_deal_every_sample_once(alpha: float) -> None:
    labels = balanced(5, 20)
    dealt = data.deal(labels, 8, config=DataConfig(shards="dirichlet", dirichlet_alpha=alpha), seed=3)
    assert torch.cat(dealt).sort().values.equal(torch.arange(100))


@pytest.mark.parametrize("config", ALL, ids=lambda config: config.shards)
def test_more_peers_than_samples_is_the_users_mistake(config: DataConfig) -> None:
    with pytest.raises(ConfigError, match=r"swarm\.num_peers=11 is above the 10 training samples"):
        data.deal(torch.zeros(10).long(), 11, config=config, seed=0)


def test_class_counts_name_every_class() -> None:
    assert data.class_counts(torch.tensor([2, 0, 2]), num_classes=5) == (1, 0, 2, 0, 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"shards": "by_size"}, "set both"),
        ({"shard_sizes": (1, 2)}, "set both"),
        ({"shards": "by_size", "shard_sizes": (1, 0)}, "should be greater than or equal to 0.000001"),
    ],
)
def test_shard_sizes_that_make_no_sense_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**values)
