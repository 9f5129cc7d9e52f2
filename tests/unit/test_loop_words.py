"""What a loop that nobody else listens to says of the others."""

from __future__ import annotations

import pytest

from ray_gossip.config import Config
from ray_gossip.gossip.members import Roster
from ray_gossip.loop.voice import Screen


def test_who_comes_and_who_goes_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    voice, told = Screen(Config(), peer_index=1), []
    for present in (None, (1,), (0, 1, 2), (0, 1, 2), (1, 2, 5), (1,)):
        voice.rounds([], Roster(present) if present else None)
        told.append(capsys.readouterr().err.replace("ray_gossip: ", "").splitlines())
    assert told == [[], [], ["peers 0, 2 are here"], [], ["peer 5 is here", "peer 0 is gone"], []]
