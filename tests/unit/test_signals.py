"""Signs of life between two processes."""

from __future__ import annotations

import time

import pytest

from ray_gossip.gossip.signals import Pulse


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def test_silence_counts_from_the_last_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, felt = Clock(monkeypatch), []
    pulse = Pulse()
    for beat in (1, 1, 1, 2, 2):
        clock.now += 0.5
        felt.append(pulse.feel(beat))
    assert felt == [0.0, 0.5, 1.0, 0.0, 0.5]


def test_one_that_stood_still_itself_does_not_take_the_other_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole machine is stopped for an hour, and this process is the first to go on."""
    clock = Clock(monkeypatch)
    pulse = Pulse()
    pulse.feel(1)
    clock.now += 3600.0
    assert pulse.feel(1) <= 5.0
    clock.now += 0.5
    assert pulse.feel(2) == 0.0


def test_silence_is_noticed_however_long_a_local_step_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    pulse = Pulse()
    pulse.feel(1)
    for _ in range(7):
        clock.now += 60.0
        silent_s = pulse.feel(1)
    assert silent_s > 30.0
