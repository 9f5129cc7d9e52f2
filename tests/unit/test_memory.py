"""What an optimizer remembers survives the way to another peer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ray_gossip.training.eager import keep_compiler_out
from ray_gossip.training.memory import follow_parameters, memory_of, take_memory

keep_compiler_out()

KINDS: dict[str, Callable[..., Optimizer]] = {
    name: getattr(torch.optim, name)
    for name in sorted(torch.optim.__all__ if hasattr(torch.optim, "__all__") else [])
    if isinstance(getattr(torch.optim, name), type) and name not in ("Optimizer", "LBFGS", "SparseAdam", "Muon")
}


def made(kind: str, seed: int) -> tuple[nn.Module, Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    options = {"momentum": 0.9} if kind in ("SGD", "RMSprop") else {}
    return model, KINDS[kind](model.parameters(), lr=0.01, **options)


def trained(model: nn.Module, optimizer: Optimizer, *, steps: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(torch.randn(16, 4, generator=generator)) ** 2).mean().backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("kind", KINDS)
def test_who_takes_it_over_steps_on_bit_for_bit(kind: str) -> None:
    donor, newcomer = made(kind, 0), made(kind, 1)
    trained(*donor, steps=5)
    newcomer[0].load_state_dict(donor[0].state_dict())
    memory = memory_of(donor[1])
    assert memory
    assert all(tensor.device.type == "cpu" for tensor in memory.values())
    take_memory(newcomer[1], memory)
    for own, theirs in zip(trained(*newcomer, steps=5), trained(*donor, steps=5), strict=True):
        assert torch.equal(own, theirs)


def test_it_is_a_copy() -> None:
    model, optimizer = made("Adam", 0)
    trained(model, optimizer, steps=1)
    memory = memory_of(optimizer)
    before = {name: tensor.clone() for name, tensor in memory.items()}
    trained(model, optimizer, steps=1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in memory.items())


def test_hyperparameters_stay_those_of_the_newcomer() -> None:
    donor, newcomer = made("AdamW", 0), made("AdamW", 1)
    trained(*donor, steps=2)
    newcomer[1].param_groups[0]["lr"] = 0.5
    take_memory(newcomer[1], memory_of(donor[1]))
    assert newcomer[1].param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_what_another_kind_remembers_is_passed_over(kind: str) -> None:
    donor, newcomer = made("RMSprop", 0), made(kind, 1)
    trained(*donor, steps=2)
    take_memory(newcomer[1], memory_of(donor[1]))
    assert newcomer[1].state_dict()["state"] == {}


def test_what_belongs_to_other_parameters_is_passed_over() -> None:
    donor = made("Adam", 0)
    trained(*donor, steps=2)
    for other in (nn.Linear(4, 8), nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))):
        optimizer = torch.optim.Adam(other.parameters())
        take_memory(optimizer, memory_of(donor[1]))
        assert optimizer.state_dict()["state"] == {}


def test_of_an_optimizer_that_has_not_stepped_or_keeps_other_things_there_is_nothing() -> None:
    _, fresh = made("Adam", 0)
    assert memory_of(fresh) == {}

    class Odd(torch.optim.SGD):
        def step(self, closure: None = None) -> None:  # type: ignore[override]
            for parameter in self.param_groups[0]["params"]:
                self.state[parameter]["names"] = ["what", "is", "this"]

    model = nn.Linear(2, 2)
    odd = Odd(model.parameters(), lr=0.1)
    odd.step()
    assert memory_of(odd) == {}


def test_it_follows_a_model_that_has_moved() -> None:
    """As where a loop joins, and takes over what another optimizer remembers, before it moves its model to the GPU."""
    model, optimizer = made("Adam", 0)
    trained(model, optimizer, steps=1)
    before = optimizer.state
    follow_parameters(optimizer)
    assert optimizer.state is before, "nothing has moved"
    moved, elsewhere = made("Adam", 0)
    moved.to("meta")  # a device that every machine has
    elsewhere.param_groups[0]["params"] = list(moved.parameters())
    for parameter, state in zip(moved.parameters(), before.values(), strict=True):
        elsewhere.state[parameter] = state
    follow_parameters(elsewhere)
    for state in elsewhere.state.values():
        assert (state["exp_avg"].device.type, state["step"].device.type) == ("meta", "cpu")
