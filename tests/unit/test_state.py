"""What is averaged of a model, as one vector."""

from __future__ import annotations

import torch
from torch import nn

from ray_gossip.state import ModelState, averaged_tensors, state_size


def test_a_model_that_moves_after_its_state_was_made_is_followed() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    state = ModelState(model)
    model._apply(lambda tensor: tensor.detach() + 1)  # type: ignore[no-untyped-call]  # as model.cuda() does
    flat, expected = torch.empty(state_size(model)), torch.cat([t.detach().flatten() for t in averaged_tensors(model)])
    state.read(flat)
    assert flat.equal(expected)
    state.add(torch.ones_like(flat))
    assert torch.cat([tensor.detach().flatten() for tensor in averaged_tensors(model)]).equal(expected + 1)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_optimizer_that_was_built_before_goes_on_with_what_was_added() -> None:
    model = nn.Linear(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    ModelState(model).add(torch.ones(state_size(model)))
    before = model.weight.detach().clone()
    model.weight.grad = torch.ones_like(before)
    optimizer.step()
    assert model.weight.equal(before - 1)


def test_tied_parameters_are_averaged_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model.get_submodule("1").weight = model.get_submodule("0").weight
    assert state_size(model) == 16
