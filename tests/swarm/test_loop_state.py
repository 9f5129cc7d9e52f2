"""A loop without a driver that is interrupted, and goes on from what it has saved itself."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ray_gossip
from ray_gossip.errors import UserError

NUM_SAMPLES, NUM_EPOCHS = 20, 2
CONFIG = {"gossip": {"steps": 5}, "swarm": {"final_s": 5}}


def train(*, until: int, resumed: Mapping[str, Any] | None = None) -> tuple[nn.Module, list[int], dict[str, Any]]:
    """Returns the model, the samples in the order in which they were seen, and all that it goes on from."""
    torch.manual_seed(0 if resumed is None else 1)
    model = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with contextlib.redirect_stderr(io.StringIO()):
        peer = ray_gossip.join(model, optimizer=optimizer, config=CONFIG, resumed=resumed)
    sampler, seen = peer.sampler(range(NUM_SAMPLES)), list[int]()
    assert peer.local_step == (0 if resumed is None else resumed["local_step"])
    assert peer.resumed == (None if resumed is None else {"note": "as it was"})
    for _ in sampler.epochs(NUM_EPOCHS):
        for index in sampler:
            optimizer.zero_grad()
            model(torch.tensor([[index / NUM_SAMPLES]])).pow(2).sum().backward()
            optimizer.step()
            seen.append(index)
            peer.checkpoint(note="nobody asks for it here")
            if peer.local_step == until:
                state = peer.state_dict(note="as it was")
                torch.save(state, file := io.BytesIO())
                peer.leave(agree=False)
                return model, seen, torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    raise AssertionError


def test_it_goes_on_bit_for_bit_with_the_next_sample() -> None:
    whole, seen, _ = train(until=35)
    _, first, state = train(until=13)
    model, second, _ = train(until=35, resumed=state)
    assert first + second == seen
    for name, value in whole.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_what_drop_last_drops_is_not_seen_after_an_interruption_either() -> None:
    """Neither does it count as still to be seen."""
    dataset = TensorDataset(torch.arange(NUM_SAMPLES))

    def batches(resumed: Mapping[str, Any] | None, *, until: int) -> tuple[list[list[int]], dict[str, Any]]:
        with contextlib.redirect_stderr(io.StringIO()):
            peer = ray_gossip.join(nn.Linear(1, 1), config=CONFIG, resumed=resumed)
        sampler, found = peer.sampler(dataset), list[list[int]]()
        loader = DataLoader(dataset, batch_size=8, sampler=sampler, drop_last=True, num_workers=1)
        for _ in sampler.epochs(4):
            for (numbers,) in loader:
                found.append(numbers.tolist())
                peer.step(samples=len(numbers))
                if peer.local_step == until:
                    state = peer.state_dict()
                    peer.leave(agree=False)
                    return found, state
        raise AssertionError

    whole, _ = batches(None, until=7)
    first, state = batches(None, until=4)  # two of three batches of 8 from 20 samples are whole: at the end of an epoch
    second, _ = batches(state, until=7)
    assert first == whole[:4]
    assert second == whole[4:]


def test_a_state_of_another_model_is_refused_before_anything_starts() -> None:
    _, _, state = train(until=1)
    with pytest.raises(UserError, match=r"join\(resumed=\.\.\.\) is of another model or optimizer: Error"):
        ray_gossip.join(nn.Linear(2, 2), resumed=state)
