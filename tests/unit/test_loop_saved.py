"""What a loop's peer goes on from: made, and taken up again."""

from __future__ import annotations

import datetime
import enum
import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ray_gossip.checkpoints.saving import Saving
from ray_gossip.config import Config
from ray_gossip.errors import UserError
from ray_gossip.loop.saved import Saved
from ray_gossip.loop.session import Session, Stopped

ROUND_TRIP: dict[str, Any] = {
    "epoch": 3,
    "best": np.float64(0.5),
    "names": ("a", "b"),
    "mask": torch.tensor([True, False]),
    "nothing": None,
}


def stepped(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(8, 3)).pow(2).sum().backward()
    optimizer.step()
    return model, optimizer


def state_of(saved: Saved, **own: Any) -> dict[str, Any]:
    """As it comes back from a file."""
    state = saved.state(own, local_step=7, samples=56, is_told=False, kept=torch.ones(2), averaged=[])
    torch.save(state, buffer := io.BytesIO())
    found: dict[str, Any] = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    return found


def test_model_optimizer_random_numbers_and_what_the_loop_adds_come_back() -> None:
    model, optimizer = stepped(0)
    state = state_of(Saved(model, optimizer), **ROUND_TRIP)
    expected = torch.rand(4), np.random.rand()
    other, other_optimizer = stepped(1)
    saved = Saved.given(other, other_optimizer, state)
    saved.begin()
    assert torch.equal(torch.rand(4), expected[0])
    assert np.random.rand() == expected[1]
    assert all(torch.equal(own, model.state_dict()[name]) for name, own in other.state_dict().items())
    first, second = (each.state_dict()["state"][0]["exp_avg"] for each in (optimizer, other_optimizer))
    assert torch.equal(first, second)
    assert saved.local_step == 7
    assert saved.kept is not None
    assert saved.own is not None
    assert torch.equal(saved.own.pop("mask"), ROUND_TRIP["mask"])
    assert saved.own == {"epoch": 3, "best": 0.5, "names": ["a", "b"], "nothing": None}


@pytest.mark.parametrize(
    "make",
    [
        lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4]),
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20),
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20),
        lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
        lambda optimizer: torch.optim.lr_scheduler.SequentialLR(
            optimizer,
            [
                torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=3),
                torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9),
            ],
            milestones=[3],
        ),
    ],
    ids=["multi-step", "one-cycle", "cosine", "lambda", "sequential"],
)
def test_a_scheduler_goes_on_as_if_nothing_had_happened(make: Any) -> None:
    def rates(optimizer: torch.optim.Optimizer, scheduler: Any, num_steps: int) -> list[float]:
        found = []
        for _ in range(num_steps):
            optimizer.step()
            scheduler.step()
            found.append(optimizer.param_groups[0]["lr"])
        return found

    model, optimizer = stepped(0)
    scheduler = make(optimizer)
    rates(optimizer, scheduler, 3)
    state = state_of(Saved(model, optimizer), scheduler=scheduler)
    expected = rates(optimizer, scheduler, 5)
    other, other_optimizer = stepped(1)
    other_scheduler = make(other_optimizer)
    saved = Saved.given(other, other_optimizer, state)
    assert saved.own is not None
    other_scheduler.load_state_dict(saved.own["scheduler"])
    assert rates(other_optimizer, other_scheduler, 5) == expected


def test_a_copy_is_saved() -> None:
    model, optimizer = stepped(0)
    weight = torch.ones(2)
    state = Saved(model, optimizer).state(
        {"weight": weight}, local_step=1, samples=1, is_told=False, kept=torch.ones(1), averaged=[]
    )
    before = state["model"]["0.weight"].clone()
    weight.zero_()
    with torch.no_grad():
        model.get_parameter("0.weight").zero_()
    assert torch.equal(state["own"]["weight"], torch.ones(2))
    assert torch.equal(state["model"]["0.weight"], before)


class Phase(enum.IntEnum):
    WARM = 1


REFUSED = {"date": datetime.date(2026, 1, 1), "object": [{"deep": object()}], "set": {1, 2}, "Phase": Phase.WARM}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_could_not_be_read_again_is_refused_by_name(kind: str) -> None:
    with pytest.raises(UserError, match=rf"checkpoint\(mine=\.\.\.\) holds a {kind}, which nothing can be read from"):
        state_of(Saved(*stepped(0)), mine=REFUSED[kind])


def test_what_holds_itself_is_refused_by_name() -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(UserError, match=r"checkpoint\(circle=\.\.\.\) holds itself"):
        state_of(Saved(*stepped(0)), circle=circle)


def test_what_an_optimizer_could_not_be_read_from_again_is_refused_by_name() -> None:
    model, optimizer = stepped(0)
    optimizer.param_groups[0]["schedule"] = lambda step: step
    with pytest.raises(UserError, match="the optimizer holds a function, which nothing can be read from again"):
        state_of(Saved(model, optimizer))


def test_a_state_of_another_optimizer_is_refused() -> None:
    state = state_of(Saved(*stepped(0)))
    model, _ = stepped(1)
    with pytest.raises(UserError, match="its optimizer is Adam, and this one SGD"):
        Saved.given(model, torch.optim.SGD(model.parameters(), lr=0.1), state)


@pytest.mark.parametrize("damage", [{"random": {}}, {"kept": 3}, {"local_step": -5}])
def test_a_state_that_is_damaged_is_one_line(damage: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"join\(resumed=\.\.\.\) is of another model or optimizer: [^\n]+$"):
        Saved.given(*stepped(1), state_of(Saved(*stepped(0))) | damage)


@pytest.mark.parametrize("state", [{}, {"model": {}}, {"samplers": [], "model": {"0.weight": torch.ones(1)}}])
def test_a_state_that_does_not_fit_is_one_line(state: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"join\(resumed=\.\.\.\) is of another model or optimizer: [^\n]+$"):
        Saved.given(*stepped(0), state)


def test_what_is_saved_for_a_mark_is_not_written_over(tmp_path: Path) -> None:
    """The driver may have counted it among the files of a checkpoint meanwhile."""
    saving = Saving(str(tmp_path), every_steps=20, peer_index=0)
    for step in (20, 21):
        saving.after_step(step, lambda step=step: {"local_step": step, "samples": step})  # type: ignore[misc]
        saving.finish()
        saving.ask(20)
    assert [(told.mark, told.local_step) for told in saving.told()] == [(20, 20)]


def test_a_stop_that_comes_while_the_loop_saves_itself_lets_it_save_itself_once_more(tmp_path: Path) -> None:
    saving = Saving(str(tmp_path), every_steps=None, peer_index=0)
    session = Session(Config(), network=Any, founders=1, device=torch.device("cpu"), node="here", saving=saving)  # type: ignore[arg-type]
    state = {"local_step": 2, "samples": 2}

    def stopped_meanwhile() -> dict[str, Any]:
        session.stop(saves_within_s=60.0)
        return state

    session.checkpoint(1, dict)  # so that it is known to save itself
    session.save(40)
    session.checkpoint(2, stopped_meanwhile)
    session.check()
    saving.ask(45)  # by time, on its way when the run was stopped
    threading.Timer(0.1, saving.ask_last, [50]).start()
    with pytest.raises(Stopped):
        session.checkpoint(3, lambda: state)
    saving.finish()
    assert [(told.mark, told.cause) for told in saving.told()] == [(40, ""), (50, "")]
