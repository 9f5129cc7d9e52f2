"""Networks."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import nn

from ray_gossip import models
from ray_gossip.config import ModelConfig

Name = Literal["cnn", "mlp"]
NAMES: list[Name] = ["cnn", "mlp"]


def build(name: Name, *, seed: int = 0, in_shape: tuple[int, int, int] = (1, 8, 8)) -> nn.Module:
    return models.build(ModelConfig(name=name), in_shape=in_shape, num_classes=10, seed=seed)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("in_shape", [(1, 8, 8), (3, 32, 32)])
def test_a_network_gives_one_logit_per_class(name: Name, in_shape: tuple[int, int, int]) -> None:
    assert build(name, in_shape=in_shape)(torch.zeros(5, *in_shape)).shape == (5, 10)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_parameters_and_another_seed_others(name: Name) -> None:
    first, again, other = (list(build(name, seed=seed).parameters()) for seed in (3, 3, 4))
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))


@pytest.mark.parametrize("name", NAMES)
def test_building_a_network_does_not_disturb_the_callers_random_numbers(name: Name) -> None:
    torch.manual_seed(0)
    undisturbed = torch.rand(4)
    torch.manual_seed(0)
    build(name, seed=9)
    assert torch.rand(4).equal(undisturbed)
