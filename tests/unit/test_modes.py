"""A module's own mode is the user's: in training, evaluation and recalibration."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ray_gossip import data, models
from ray_gossip.config import DataConfig, ModelConfig, parse
from ray_gossip.training.modes import evaluating
from ray_gossip.training.trainer import Trainer
from tests import zoo

DIGITS = data.load(DataConfig())
CPU = torch.device("cpu")


class TwoNorms(nn.Module):
    """The first is a constant of the user's, the second trains."""

    def __init__(self) -> None:
        super().__init__()
        self.fixed, self.free = nn.BatchNorm1d(64), nn.BatchNorm1d(64)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(64, 10)
        self.fixed.running_mean, self.fixed.running_var = torch.full((64,), -1.0), torch.full((64,), 0.5)
        self.fixed.eval()
        self.drop.eval()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.drop(self.free(self.fixed(images.flatten(1)))))
        return logits


class Merging(nn.Linear):
    """An adapter that is folded into the weight for evaluation, as train() says."""

    merged = False

    def train(self, mode: bool = True) -> Merging:
        if mode == self.merged:
            self.weight.data += 1.0 if self.merged is False else -1.0
            self.merged = not mode
        super().train(mode)
        return self


def trainer_of(model: nn.Module, **sections: Any) -> Trainer:
    config = parse({"train": {"recalibrate_samples": 300}, **sections})
    return Trainer(config, model=model, dataset=DIGITS, shard=torch.arange(200), device=CPU)


def modes_of(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def test_evaluation_gives_each_module_its_own_mode_back() -> None:
    model = TwoNorms()
    before = modes_of(model)
    with evaluating(model):
        assert not any(modes_of(model))
    assert modes_of(model) == before


def test_evaluation_gives_the_modes_back_where_it_fails() -> None:
    model = TwoNorms()
    before = modes_of(model)
    with pytest.raises(RuntimeError), evaluating(model):
        model(torch.zeros(2, 3))
    assert modes_of(model) == before


def test_adapters_that_merge_for_evaluation_are_taken_apart_again() -> None:
    merging = Merging(2, 2)
    weight = merging.weight.detach().clone()
    with evaluating(nn.Sequential(nn.Linear(2, 2), merging)):
        assert not merging.weight.equal(weight)
    torch.testing.assert_close(merging.weight.detach(), weight)


def test_training_and_evaluation_leave_layers_in_evaluation_mode_alone() -> None:
    model = TwoNorms()
    trainer = trainer_of(model)
    for _ in range(3):
        trainer.step()
        trainer.evaluate()
    assert not model.fixed.training
    assert not model.drop.training
    assert model.fixed.running_mean is not None
    assert (model.fixed.running_mean == -1).all()
    assert model.free.num_batches_tracked is not None
    assert model.free.num_batches_tracked.item() == 3


def test_recalibration_measures_layers_in_training_mode_and_no_others() -> None:
    model = TwoNorms()
    trainer = trainer_of(model, seed=5)
    assert trainer.settle_statistics() == "recalibrated"
    chosen = torch.randperm(DIGITS.num_train, generator=torch.Generator().manual_seed(5))[:300]
    seen = (DIGITS.train_inputs[chosen].flatten(1) + 1) / (0.5 + 1e-5) ** 0.5
    torch.testing.assert_close(model.free.running_mean, seen.mean(0))
    torch.testing.assert_close(model.free.running_var, seen.var(0))
    assert model.fixed.running_mean is not None
    assert (model.fixed.running_mean == -1).all()
    assert model.free.momentum == 0.1
    assert modes_of(model) == modes_of(TwoNorms())


def test_a_model_with_frozen_statistics_only_has_none_to_measure() -> None:
    model = TwoNorms()
    model.free.eval()
    trainer = trainer_of(model)
    assert trainer.settle_statistics() == "none"
    assert trainer.notices == ["train.recalibrate_samples=300 is skipped: the model has no BatchNorm in training mode"]


def test_a_model_that_keeps_its_body_in_evaluation_mode_by_train_does_so_from_the_start() -> None:
    config = ModelConfig(factory="elsewhere:Frozen")
    model = models.build(config, in_shape=(1, 8, 8), num_classes=10, seed=0, factory=zoo.Frozen)
    assert isinstance(model, zoo.Frozen)
    assert model.head.training
    assert not model.norm.training
    trainer = trainer_of(model, train={"local_steps": 60})
    for _ in range(5):
        trainer.step()
    before = trainer.evaluate().accuracy
    assert trainer.settle_statistics() == "none"
    assert trainer.evaluate()[0] == before
    assert model.norm.running_mean is not None
    assert (model.norm.running_mean == -1).all()


def test_a_model_in_evaluation_mode_stays_there_and_says_so() -> None:
    model = models.build(ModelConfig(), in_shape=(1, 8, 8), num_classes=10, seed=0).eval()
    trainer = trainer_of(model, train={})
    trainer.step()
    assert not any(modes_of(model))
    (notice,) = trainer.notices
    assert notice.startswith("the model is in evaluation mode and stays there")
