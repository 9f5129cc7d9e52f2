"""What is known of a run, and what is said because of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ray_gossip.config import Config
from ray_gossip.records import Notice, PeerFinished, Record
from ray_gossip.telemetry.recovery import Recovery
from ray_gossip.telemetry.state import SwarmState
from ray_gossip.telemetry.watch import Watch


class Observer:
    """Owns the picture of a run, `state`. Pure: no files.

    Args:
        peers: indices of the peers that report here; default: all that a driver starts.
    """

    def __init__(self, config: Config, *, peers: Iterable[int] | None = None) -> None:
        self.config = config
        indices = range(config.swarm.num_peers) if peers is None else peers
        total_steps = config.train.local_steps if config.train.loop is None else None
        self.state = SwarmState(peers=indices, total_steps=total_steps)
        self._recovery = Recovery() if config.faults.are_asked_for else None
        self._watch = Watch(self.state, config.gossip)

    def see(self, record: Record) -> list[Record]:
        """What is to be written because of a record, in order: it, what it completes, what is wrong because of it."""
        rounds = self.state.fold(record)
        if self._recovery is not None:
            self._recovery.see(record)
        # a peer that ends completes rounds of before, and curves end with the end
        records = [*rounds, record] if isinstance(record, PeerFinished) else [record, *rounds]
        return [*records, *self._folded(notice for each in records for notice in self._watch.see(each))]

    @property
    def is_whole(self) -> bool:
        """The run has got over all that happened to it on purpose."""
        return self._recovery is None or self._recovery.is_whole

    def recovery(self) -> dict[str, Any] | None:
        """How it got over that; None: nothing was to happen."""
        return None if self._recovery is None else self._recovery.report()

    def end(self, *, is_saved: bool) -> list[Record]:
        """What is to be said of the end; the same however often it is asked.

        Args:
            is_saved: a model is.
        """
        return self._folded(self._watch.end(is_saved=is_saved))

    def _folded(self, notices: Iterable[Notice]) -> list[Record]:
        found: list[Record] = list(notices)
        for notice in found:
            self.state.fold(notice)
        return found
