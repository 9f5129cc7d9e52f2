"""Which training losses say that the training has gone wrong."""

from __future__ import annotations

import math

import pytest

from ray_gossip.training.spikes import SpikeGuard


@pytest.mark.parametrize("factor", [None, 3.0])
@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_too_much_at_any_time(factor: float | None, loss: float) -> None:
    guard = SpikeGuard(factor)
    assert guard.see(loss) == "its training loss is not finite"
    assert guard.see(2.0) == ""


def test_without_a_factor_any_finite_loss_will_do() -> None:
    guard = SpikeGuard(None)
    assert [guard.see(loss) for loss in [1.0] * 30 + [1e30]] == [""] * 31


def test_a_spike_is_measured_by_the_usual_loss_and_is_none_of_it() -> None:
    guard = SpikeGuard(3.0)
    assert [guard.see(2.0 + index % 2) for index in range(20)] == [""] * 20
    assert guard.see(7.4) == ""
    for _ in range(5):
        assert guard.see(9.1) == "its training loss 9.1 is above train.loss_spike=3 times the usual 3"
    assert guard.see(2.0) == ""


def test_the_first_losses_of_a_run_which_are_high_are_no_spikes() -> None:
    guard = SpikeGuard(2.0)
    assert not any(guard.see(loss) for loss in (100.0, 10.0, 50.0, 3.0, 9.0, 2.0))


def test_a_loss_that_falls_below_zero_has_no_spikes() -> None:
    guard = SpikeGuard(2.0)
    assert not any(guard.see(-float(index)) for index in range(40))
    assert guard.see(5.0) == ""
