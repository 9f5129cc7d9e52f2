"""Networks."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import nn

from ray_gossip import models
from ray_gossip.config import ModelConfig

Name = Literal["cnn", "mlp", "resnet18", "resnet20", "resnet50"]
SMALL: list[Name] = ["cnn", "mlp", "resnet20"]
RESNETS: list[Name] = ["resnet18", "resnet20", "resnet50"]


def build(
    name: Name,
    *,
    seed: int = 0,
    in_shape: tuple[int, int, int] = (1, 8, 8),
    norm: Literal["batch", "group"] = "batch",
    num_classes: int = 10,
) -> nn.Module:
    return models.build(ModelConfig(name=name, norm=norm), in_shape=in_shape, num_classes=num_classes, seed=seed)


class Lazy(nn.Module):
    """Learns its shapes from the first batch; on tokens."""

    def __init__(self, in_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.embed, self.flat = nn.Embedding(9, 4), nn.Flatten()
        self.hidden, self.norm, self.out = nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.LazyLinear(num_classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.norm(self.hidden(self.flat(self.embed(tokens))))
        return torch.as_tensor(self.out(hidden))


def test_a_model_that_learns_its_shapes_from_a_batch_has_them_and_the_seeds_values() -> None:
    def made(seed: int) -> nn.Module:
        config = ModelConfig(factory="elsewhere:Lazy")
        return models.build(config, in_shape=(6,), num_classes=3, seed=seed, factory=Lazy, input_type=torch.int64)

    first, again, other = made(1), made(1), made(2)
    assert num_parameters(first) == 9 * 4 + 24 * 8 + 8 + 2 * 8 + 8 * 3 + 3
    assert all(map(torch.equal, first.state_dict().values(), again.state_dict().values()))
    assert not first.get_parameter("out.weight").equal(other.get_parameter("out.weight"))
    assert first.training
    assert first.get_buffer("norm.running_mean").tolist() == [0.0] * 8


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("in_shape", [(1, 8, 8), (3, 32, 32)])
def test_a_network_gives_one_logit_per_class(name: Name, in_shape: tuple[int, int, int]) -> None:
    assert build(name, in_shape=in_shape)(torch.zeros(5, *in_shape)).shape == (5, 10)


@pytest.mark.parametrize("name", SMALL)
def test_the_same_seed_gives_the_same_parameters_and_another_seed_others(name: Name) -> None:
    first, again, other = (build(name, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(map(torch.equal, first.values(), again.values()))
    weights = [key for key, tensor in first.items() if tensor.ndim > 1]
    assert not any(first[key].equal(other[key]) for key in weights)


@pytest.mark.parametrize("name", SMALL)
def test_building_a_network_does_not_disturb_the_callers_random_numbers(name: Name) -> None:
    torch.manual_seed(0)
    undisturbed = torch.rand(4)
    torch.manual_seed(0)
    build(name, seed=9)
    assert torch.rand(4).equal(undisturbed)


@pytest.mark.parametrize(
    ("name", "in_shape", "num_classes", "expected"),
    [
        ("resnet20", (3, 32, 32), 10, 269_722),  # He et al., table 6: 0.27 million
        ("resnet18", (3, 32, 32), 10, 11_173_962),  # 11.2 million, as of the CIFAR variants in use
        ("resnet50", (3, 64, 64), 200, 23_910_152),
    ],
)
def test_resnets_have_the_published_numbers_of_parameters(
    name: Name, in_shape: tuple[int, int, int], num_classes: int, expected: int
) -> None:
    with torch.device("meta"):
        network = build(name, in_shape=in_shape, num_classes=num_classes)
        assert num_parameters(network) == expected
        assert network(torch.zeros(2, *in_shape)).shape == (2, num_classes)


@pytest.mark.parametrize(
    ("name", "in_shape", "resolution"),
    [
        ("resnet18", (3, 32, 32), 4),
        ("resnet18", (3, 64, 64), 8),
        ("resnet50", (3, 64, 64), 4),
        ("resnet50", (3, 32, 32), 4),
    ],
)
def test_small_images_keep_a_map_of_features_until_the_last_stage(
    name: Name, in_shape: tuple[int, int, int], resolution: int
) -> None:
    sizes = []
    with torch.device("meta"):
        network = build(name, in_shape=in_shape)
        network.layer4.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[2:])))  # type: ignore[union-attr]
        network(torch.zeros(1, *in_shape))
    assert sizes == [(resolution, resolution)]


@pytest.mark.parametrize("name", RESNETS)
def test_with_group_norm_an_image_does_not_depend_on_its_batch(name: Name) -> None:
    with torch.device("meta"):
        network = build(name, norm="group")
    kinds = {type(module) for module in network.modules()}
    assert nn.GroupNorm in kinds
    assert nn.BatchNorm2d not in kinds
    assert not list(network.buffers())


def test_a_shortcut_of_resnet20_has_no_parameters_and_passes_the_image_on() -> None:
    network = build("resnet20", in_shape=(3, 32, 32))
    shortcuts = [module for module in network.modules() if type(module).__name__ == "_Shortcut"]
    assert len(shortcuts) == 2
    image = torch.rand(1, 16, 8, 8)
    passed = shortcuts[0](image)
    assert passed.shape == (1, 32, 4, 4)
    assert passed[:, :16].equal(image[:, :, ::2, ::2])
    assert not passed[:, 16:].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int8, torch.bool, torch.complex64])
def test_a_constant_of_any_type_is_no_parameter(dtype: torch.dtype) -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("constant", torch.ones(3, dtype=dtype))
    model.register_parameter("frozen", nn.Parameter(torch.ones(3, dtype=dtype), requires_grad=False))
    models.check(model, called="the model")
