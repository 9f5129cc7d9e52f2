"""A trainer that goes on from what was saved takes the same steps, bit for bit, as one that was never interrupted."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ray_gossip.training.trainer import Trainer
from ray_gossip.training.whole import go_on_from, seed_random_numbers, whole_state
from tests.unit.trainers import EVERYTHING, make_trainer

KEPT = torch.arange(3.0)


class Restless(nn.Sequential):
    """Draws random numbers from all that there are, and has statistics."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 10))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = super().forward(inputs)  # type: ignore[no-untyped-call]
        return outputs * (1 + 0.1 * random.random() + 0.1 * float(np.random.rand())) if self.training else outputs


def trainer(**sections: Any) -> Trainer:
    torch.manual_seed(3)
    sections = {"optimizer": {"name": "AdamW", "lr": 0.01, "schedule": "cosine"}, **sections}
    return make_trainer(model=Restless(), train={"local_steps": 100}, **sections)


def saved_at(local_step: int, *, then: int) -> tuple[dict[str, Any], list[Tensor]]:
    """What was saved at a local step, and the model some steps later."""
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    origin = trainer()
    for _ in range(local_step):
        origin.step()
    state = whole_state(origin, kept=KEPT)
    for _ in range(then):
        origin.step()
    return state, list(origin.model_state().values())


def test_what_is_drawn_in_training_follows_from_the_seed() -> None:
    trained = []
    for numbers in ((0, 1), (0, 1), (0, 2), (1, 1)):
        stepping = trainer()
        seed_random_numbers(*numbers)
        for _ in range(3):
            stepping.step()
        trained.append(torch.cat([each.flatten() for each in stepping.model_state().values()]))
    first, again, *others = trained
    assert torch.equal(first, again)
    assert not any(torch.equal(first, each) for each in others)


@pytest.mark.parametrize("local_step", [0, 1, 7, 50])  # an epoch has 44.8 batches
def test_it_goes_on_bit_for_bit(local_step: int) -> None:
    state, expected = saved_at(local_step, then=30)
    torch.manual_seed(99), random.seed(99), np.random.seed(99)
    successor = trainer()
    go_on_from(successor, state, samples=state["samples"], is_same_shard=True)
    assert (successor.local_step, successor.samples) == (local_step, 32 * local_step)
    for _ in range(30):
        successor.step()
    for own, theirs in zip(successor.model_state().values(), expected, strict=True):
        assert torch.equal(own, theirs)
    assert successor.samples == 32 * (local_step + 30)


def test_later_steps_change_nothing_of_what_was_taken() -> None:
    state, _ = saved_at(5, then=0)
    again, _ = saved_at(5, then=10)
    for name, tensor in state["model"].items():
        assert torch.equal(tensor, again["model"][name])
    assert torch.equal(state["optimizer"][0]["exp_avg"], again["optimizer"][0]["exp_avg"])


def test_with_other_samples_it_begins_them_and_counts_what_it_is_told() -> None:
    state, _ = saved_at(7, then=0)
    successor = trainer()
    successor.take_shard(EVERYTHING[::3])
    go_on_from(successor, state, samples=1000, is_same_shard=False)
    assert (successor.samples, successor.batches.samples, successor.local_step) == (1000, 0, 7)
    successor.step()
    assert successor.samples == 1032
