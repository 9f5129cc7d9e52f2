"""The end of a peer's part, without a network."""

from __future__ import annotations

import time
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

from ray_gossip.gossip.commands import Commands, Interrupted
from ray_gossip.gossip.leaving import Leaving

FINAL_S = 0.5


class DyingSidecars(Commands):
    """Each dies over whatever it is asked."""

    def wait_until_back(self, within_s: float) -> None:
        time.sleep(0.02)

    def _call(self, method: str, **arguments: Any) -> Future[Any]:
        future = Future[Any]()
        future.set_exception(Interrupted("it died"))
        return future


def test_a_peer_whose_sidecars_die_in_all_its_final_rounds_has_not_agreed_with_anybody() -> None:
    """It cannot know whether others were there."""
    snapshot: Any = SimpleNamespace(take=lambda local_step: None, state=None)
    leaving = Leaving(DyingSidecars(), snapshot, wait=lambda future: future.result(), final_s=FINAL_S)
    started = time.monotonic()
    ended = leaving.agree(7)
    assert time.monotonic() - started < FINAL_S + 5.0
    assert (ended.outcome, ended.agreed) == ("failed", False)
    assert "it died" in ended.cause
