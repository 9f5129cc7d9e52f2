"""Whether the processes that a peer needs beside its trainer live: averager, DHT process, libp2p daemon."""

from __future__ import annotations

import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

import hivemind

from ray_gossip.errors import SwarmError
from ray_gossip.gossip.signals import Pulse
from ray_gossip.hive.averager import GossipAverager
from ray_gossip.hive.calls import AVERAGER_DIED
from ray_gossip.hive.process import NetworkProcesses

_CHECK_S = 0.5  # how often a trainer looks after them
_HUNG_S = 30.0  # an averager process that has given no sign of life for so long is hung


class Health:
    """Seen from the training process."""

    def __init__(self, dht: hivemind.DHT, averager: GossipAverager) -> None:
        self._network, self._averager, self._pulse = NetworkProcesses(dht), averager, Pulse()
        self._checked_at = time.monotonic()

    @property
    def can_announce(self) -> bool:
        """Whether this peer can still tell others anything."""
        return not self._network.dead

    def check(self) -> None:
        """Raise SwarmError when one of them cannot go on. Looks twice a second."""
        if time.monotonic() - self._checked_at < _CHECK_S:
            return
        self._checked_at = time.monotonic()
        if dead := self._network.dead:
            raise SwarmError(f"the {dead} of this peer died")
        if not self._averager.is_alive():
            raise SwarmError(AVERAGER_DIED)
        if self._pulse.feel(self._averager.signals.ticked_ns) > _HUNG_S:
            raise SwarmError(f"the averager process of this peer has been hung for {_HUNG_S:g} s")

    def wait(self, future: Future[Any]) -> Any:
        """What the averager process answers, however long that takes: it bounds what it does itself.

        Raises:
            SwarmError: it cannot go on.
        """
        while True:
            try:
                return future.result(timeout=1.0)
            except (FutureTimeoutError, TimeoutError):
                self.check()
