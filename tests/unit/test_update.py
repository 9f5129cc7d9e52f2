"""Accumulation, clipping and loss scaling are PyTorch's own, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn import functional as F

from ray_gossip.config import parse
from ray_gossip.errors import ConfigError, UserError
from ray_gossip.training.trainer import Trainer
from tests.unit.trainers import build_model, make_trainer, state_of

STEPS = 8
RATE = {"lr": 0.5, "momentum": 0.9, "weight_decay": 0.0, "schedule": "constant", "warmup_steps": 0}


def plain_pytorch(
    batches: Trainer, *, accumulate: int = 1, clip_norm: float | None = None, scaler: GradScaler | None = None
) -> tuple[nn.Module, list[float]]:
    """The loop that anybody would write, on the batches of a trainer; returns its model, and the losses of the batches
    of the updates that were not skipped."""
    model = build_model(parse({}))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    losses: list[float] = []
    while len(losses) < STEPS * accumulate:
        optimizer.zero_grad()
        for _ in range(accumulate):
            inputs, labels = next(batches.batches)
            with torch.autocast("cpu", dtype=torch.float16, enabled=scaler is not None):
                outputs = model(inputs)
            loss = F.cross_entropy(outputs.float(), labels)
            losses.append(loss.item())
            share = loss / accumulate
            (share if scaler is None else scaler.scale(share)).backward()  # type: ignore[no-untyped-call]
        if clip_norm is not None:
            if scaler is not None:
                scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        if scaler is None:
            optimizer.step()
            continue
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() < before:
            del losses[-accumulate:]
    return model, losses


def flat(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_local_steps_are_those_of_plain_pytorch(accumulate: int, clip_norm: float | None, precision: str) -> None:
    train = {"accumulate": accumulate, "clip_norm": clip_norm, "precision": precision}
    trainer, other = (make_trainer(optimizer=RATE, train=train) for _ in range(2))
    scaler = GradScaler("cpu") if precision == "fp16" else None
    model, losses = plain_pytorch(other, accumulate=accumulate, clip_norm=clip_norm, scaler=scaler)
    for _ in range(STEPS):
        trainer.step()
    assert torch.equal(state_of(trainer), flat(model))
    progress = trainer.take_progress()
    assert progress.samples == other.samples >= STEPS * accumulate * 32
    assert progress.loss == pytest.approx(sum(losses) / len(losses))
    assert trainer.local_step == STEPS


def test_clipping_and_accumulation_make_a_difference() -> None:
    found: list[Tensor] = []
    for train in ({}, {"accumulate": 4}, {"clip_norm": 0.5}):
        trainer = make_trainer(optimizer=RATE, train=train)
        for _ in range(STEPS):
            trainer.step()
        found.append(state_of(trainer))
    assert not any(torch.equal(found[0], other) for other in found[1:])


class Overflowing(nn.Module):
    """Its gradients are not finite in the forward passes that are named."""

    def __init__(self, *when: int) -> None:
        super().__init__()
        self.network = build_model(parse({}))
        self._when, self._calls = when, 0

    def forward(self, inputs: Tensor) -> Tensor:
        self._calls += self.training
        outputs: Tensor = self.network(inputs)
        return outputs * (torch.inf if self.training and self._calls in self._when else 1.0)


def test_an_update_that_overflows_is_no_local_step() -> None:
    trainer = make_trainer(optimizer={"lr": 0.1, "schedule": "linear"}, model=Overflowing(3, 4), train=fp16())
    for _ in range(2):
        trainer.step()
    before, lr = state_of(trainer), trainer.lr
    trainer.step()
    assert trainer.local_step == 3
    assert trainer.batches.samples == 5 * 32  # those of the skipped ones have been seen
    assert trainer.lr == pytest.approx(lr - 0.1 / 1000)
    assert not torch.equal(state_of(trainer), before)
    assert torch.isfinite(state_of(trainer)).all()
    assert torch.isfinite(torch.tensor(trainer.take_progress().loss))


def fp16() -> dict[str, Any]:
    return {"precision": "fp16", "local_steps": 1000}


def test_updates_that_overflow_for_ever_end_the_run_with_a_line_that_says_so() -> None:
    trainer = make_trainer(model=Overflowing(*range(1000)), train=fp16())
    before = state_of(trainer)
    with pytest.raises(
        UserError, match=r"train\.precision=fp16: gradients were not finite 40 times in a row"
    ) as caught:
        trainer.step()
    assert "\n" not in str(caught.value)
    assert torch.equal(state_of(trainer), before)


def test_a_snapshot_keeps_the_scale_and_the_place_in_the_data() -> None:
    train = {"precision": "fp16", "accumulate": 3, "clip_norm": 0.5}
    whole, first, second = (make_trainer(optimizer=RATE, train=train) for _ in range(3))
    for _ in range(10):
        whole.step()
    for _ in range(5):
        first.step()
    second.load(first.snapshot())
    second.take_progress()
    for _ in range(5):
        second.step()
    assert torch.equal(state_of(second), state_of(whole))
    assert second.samples == whole.samples
    other = make_trainer(optimizer=RATE, train={"accumulate": 1})  # as in a population
    other.load(first.snapshot())
    assert other.samples == first.samples


def test_a_scale_of_hivemind_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.precision=fp16 needs a scaler that engine=hivemind does not take"):
        parse({"engine": "hivemind", "train": {"precision": "fp16"}})


@pytest.mark.parametrize("value", [0, -1, float("inf"), True])
def test_a_norm_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=r"train\.clip_norm"):
        parse({"train": {"clip_norm": value}})
