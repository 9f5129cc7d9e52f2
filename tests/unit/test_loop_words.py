"""What a loop that nobody else listens to says of the others."""

from __future__ import annotations

from typing import Any

import pytest

from ray_gossip.config import Config
from ray_gossip.gossip.members import Roster
from ray_gossip.loop.session import numbers
from ray_gossip.loop.voice import Screen


def test_who_comes_and_who_goes_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    voice, told = Screen(Config(), peer_index=1), []
    for present in (None, (1,), (0, 1, 2), (0, 1, 2), (1, 2, 5), (1,)):
        voice.rounds([], Roster(present) if present else None)
        told.append(capsys.readouterr().err.replace("ray_gossip: ", "").splitlines())
    assert told == [[], [], ["peers 0, 2 are here"], [], ["peer 5 is here", "peer 0 is gone"], []]


@pytest.mark.parametrize(
    "metrics",
    [None, "loss", [1], {"": 1}, {"a\n": 1}, {"a" * 101: 1}, {3: 1}, {"a": "b"}, {"a": [1, 2]}, {"a": 1 << 1400}],
)
def test_what_is_no_metric_is_refused(metrics: Any) -> None:
    with pytest.raises(TypeError, match=r"^report\("):
        numbers(metrics)
