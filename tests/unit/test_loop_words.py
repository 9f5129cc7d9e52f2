"""What a loop of one's own says of the others. The peer is real, its engine is not."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from ray_gossip.config import Config
from ray_gossip.gossip.charter import Charter
from ray_gossip.gossip.members import Roster
from ray_gossip.gossip.seat import Seat
from ray_gossip.loop import LoopPeer
from ray_gossip.training.averaged import ModelState


class Engine:
    def __init__(self) -> None:
        self.peer_index, self.notices = 1, list[str]()
        self.roster: Roster | None = None

    def attach(self, state: Any) -> None: ...

    def after_step(self, local_step: int) -> list[Any]:
        return []

    def shutdown(self) -> None: ...


def test_who_comes_and_who_goes_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    engine: Any = Engine()
    charter = Charter.of(Config(), run_id="test", has_driver=False)
    seat = Seat(peer_id="Qm", peer_index=1, charter=charter, multiaddrs=())
    peer = LoopPeer(ModelState(nn.Linear(2, 2)), engine, seat, Config())
    told = []
    for present in (None, (1,), (0, 1, 2), (0, 1, 2), (1, 2, 5), (1,)):
        engine.roster = Roster(present) if present else None
        peer.step()
        told.append(capsys.readouterr().err.replace("ray_gossip: ", "").splitlines())
    peer.leave(agree=False)
    assert told == [[], [], ["peers 0, 2 are here"], [], ["peer 5 is here", "peer 0 is gone"], []]
