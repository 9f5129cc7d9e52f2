"""Statistics of BatchNorm layers in the merged model."""

from __future__ import annotations

import copy
from typing import Literal

import pytest
import torch

from ray_gossip import data
from ray_gossip.config import parse
from ray_gossip.training.trainer import Trainer
from tests.unit.trainers import (
    CPU,
    DIGITS,
    accuracy_of,
    build_model,
    make_trainer,
    state_of,
    with_batch_norm,
)


def test_statistics_are_the_mean_of_the_peers_unless_they_are_measured_afresh() -> None:
    assert make_trainer().settle_statistics() == "none"
    averaged = make_trainer(model=with_batch_norm(), train={"recalibrate_samples": 0})
    before = averaged.model_state()
    assert averaged.settle_statistics() == "averaged"
    assert all(map(torch.equal, before.values(), averaged.model_state().values()))

    fresh = make_trainer(model=with_batch_norm(), train={"recalibrate_samples": 300}, seed=5)
    for _ in range(20):
        fresh.step()
    assert fresh.settle_statistics() == "recalibrated"
    chosen = torch.randperm(DIGITS.num_train, generator=torch.Generator().manual_seed(5))[:300]
    linear, norm = fresh.model[1], fresh.model[2]  # type: ignore[index]
    features = linear(DIGITS.train_inputs[chosen].flatten(1)).detach()
    torch.testing.assert_close(norm.running_mean, features.mean(0))
    torch.testing.assert_close(norm.running_var, features.var(0))
    assert fresh.model.training
    assert norm.momentum == 0.1


def test_peers_with_other_shards_measure_the_same_statistics() -> None:
    model = with_batch_norm()
    first, second = (
        make_trainer(model=copy.deepcopy(model), shard=shard, train={"recalibrate_samples": 100})
        for shard in (torch.arange(100), torch.arange(500, 700))
    )
    for trainer in (first, second):
        trainer.settle_statistics()
    assert state_of(first).equal(state_of(second))


def test_samples_to_measure_statistics_are_skipped_where_there_are_none() -> None:
    trainer = make_trainer(train={"recalibrate_samples": 100})
    assert trainer.notices == ["train.recalibrate_samples=100 is skipped: the model has no BatchNorm in training mode"]


@pytest.mark.parametrize("shards", ["iid", "dirichlet"])
def test_a_merged_model_with_batch_norm_is_no_worse_than_its_peers(shards: Literal["iid", "dirichlet"]) -> None:
    config = parse(
        {
            "data": {"shards": shards, "dirichlet_alpha": 0.3},
            "model": {"name": "resnet20"},
            "train": {"local_steps": 12, "recalibrate_samples": 500},
        }
    )
    dealt = data.deal(DIGITS.train_labels, 4, config=config.data, seed=0)
    peers = [Trainer(config, model=build_model(config), dataset=DIGITS, shard=shard, device=CPU) for shard in dealt]
    for _ in range(2):
        for peer in peers:
            for _ in range(6):
                peer.step()
        accuracies = [accuracy_of(peer) for peer in peers]
        mean = torch.stack([state_of(peer) for peer in peers]).mean(0)
        for peer in peers:
            peer.write_state(mean)
    averaged = accuracy_of(peers[0])
    assert peers[0].settle_statistics() == "recalibrated"
    recalibrated = accuracy_of(peers[0])
    assert min(averaged, recalibrated) >= sum(accuracies) / 4
