"""A peer that is held back round after round is named, until it is held back no more."""

from __future__ import annotations

from collections.abc import Iterator

from ray_gossip.causes import FAR_OUT
from ray_gossip.records import RoundReport
from tests.unit.test_watch import Watched, rounds_of

GROUP = (0, 1, 2, 3)
FAR = f"peer-02 {FAR_OUT}"


def group_round(number: int, *causes: str) -> Iterator[RoundReport]:
    """As each of the group reports it."""
    for peer, cause in zip(GROUP, (*causes, "", "", "", ""), strict=False):
        (report,) = rounds_of([peer], number, cause=cause)
        yield RoundReport(**{**vars(report), "group": GROUP})


def test_one_that_is_far_in_most_rounds_is_named_once_with_what_to_look_at() -> None:
    swarm = Watched(num_peers=4, group_size=4, robust="clip")
    for number in range(10):
        swarm.see(group_round(number, FAR, FAR))  # by two of the four
    (told,) = swarm.told
    assert told.startswith("trouble: peer 2 sent what is far from what the others sent")
    assert "gossip.robust=none" in told
    assert swarm.present() == ["far"]


def test_it_is_over_when_it_is_like_the_others_again() -> None:
    swarm = Watched(num_peers=4, group_size=4, robust="clip")
    for number in range(20):
        swarm.see(group_round(number, FAR if number < 8 else ""))
    assert swarm.present() == []
    assert len(swarm.told) == 1


def test_four_rounds_of_ten_are_no_trouble() -> None:
    swarm = Watched(num_peers=4, group_size=4, robust="clip")
    for number in range(40):
        swarm.see(group_round(number, FAR if number % 10 < 4 else ""))
    assert swarm.told == []
