"""How long an all-reduce may take."""

from __future__ import annotations

from ray_gossip.gossip.deadline import Deadline

CAP_S = 60.0


def learned(seconds: float, num_bytes: int) -> Deadline:
    deadline = Deadline(CAP_S)
    for _ in range(3):
        assert deadline.of(num_bytes) == CAP_S
        deadline.met(seconds, num_bytes)
    return deadline


def test_a_deadline_is_learned_from_rounds_before_and_never_below_five_seconds() -> None:
    assert learned(3.0, 1000).of(1000) == 12.0
    assert learned(0.01, 1000).of(1000) == 5.0
    assert learned(30.0, 1000).of(1000) == CAP_S


def test_more_bytes_have_more_time_and_fewer_have_no_less() -> None:
    deadline = learned(2.0, 1000)
    assert deadline.of(4000) == 32.0
    assert deadline.of(10) == 8.0


def test_after_a_missed_deadline_the_cap_counts_until_it_is_learned_anew() -> None:
    deadline = learned(2.0, 1000)
    deadline.missed()
    for _ in range(3):
        assert deadline.of(1000) == CAP_S
        deadline.met(10.0, 1000)
    assert deadline.of(1000) == 40.0
