"""One run, from the first peer to the summary: what `train` shows on a terminal, and what a trial of a sweep is."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

from ray.util.placement_group import PlacementGroup

from ray_gossip.config import Config, skipped
from ray_gossip.errors import SwarmError, one_line
from ray_gossip.factory import NAMED, Factories
from ray_gossip.records import Notice, Record
from ray_gossip.swarm import Swarm
from ray_gossip.telemetry import Observer, RunLog, Summary, SwarmState


class Run:
    """A swarm and the log of what it does. Use as a context manager: leaving it ends every peer and closes every file.

    Its iterators yield each record once it is written, and None when there is nothing to tell for a moment.

    Args:
        started_at: in seconds since 1970; the summary's durations count from there.
        group: bundles that somebody else reserved for the peers; None: the run reserves its own.
        factories: the user's own model and data, where they are handed over instead of named in the config.
        start: a snapshot that all peers go on from, at its local step; None: they begin with a new model.
    """

    def __init__(
        self,
        config: Config,
        *,
        run_id: str,
        run_dir: Path,
        started_at: float,
        group: PlacementGroup | None = None,
        factories: Factories = NAMED,
        start: bytes | None = None,
    ) -> None:
        self.config, self.run_dir = config, run_dir
        self.summary: Summary | None = None  # once it has finished or was stopped
        self._observer = Observer(config)
        self._log = RunLog(run_dir, self._observer, run_id=run_id, started_at=started_at)
        self._swarm = Swarm(config, run_id=run_id, group=group, factories=factories, start=start)
        self._open: ExitStack

    @property
    def state(self) -> SwarmState:
        return self._observer.state

    def __enter__(self) -> Run:
        with ExitStack() as entered:  # closes what is open already if the next cannot be opened
            entered.enter_context(self._log)
            entered.enter_context(self._swarm)
            self._open = entered.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def records(self) -> Iterator[Record | None]:
        """Start the peers and let them train, until each has finished or is lost."""
        yield from self._written(_notice(text) for text in skipped(self.config))
        yield from self._written(self._swarm.start())
        if self.config.engine == "gossip":
            yield from self._written([_notice(self._how_to_join())])
        yield from self._written(self._swarm.run())

    def snapshot(self) -> bytes:
        """What another run can `start` from: one peer's model, optimizer and local step, taken between two local steps.
        The swarm goes on meanwhile.

        Raises:
            SwarmError: no peer is there to give its state.
        """
        snapshot = self._swarm.snapshot()
        if snapshot is None:
            raise SwarmError(f"no peer is there to give its state; {self.run_dir / 'events.jsonl'} says why")
        return snapshot

    def finish(self) -> Summary:
        """Save the merged model and write the summary.

        Raises:
            SwarmError: no peer is left to give its model, or the disk does not take it.
        """
        model = self._swarm.model()
        if model is None:
            causes = [peer.lost.cause.splitlines() for peer in self.state.peers.values() if peer.lost]
            why = f": {one_line(causes[0][0])}" if causes and causes[0] else ""
            raise SwarmError(f"every peer was lost{why}; more is in {self.run_dir / 'events.jsonl'}")
        self.summary = self._log.write_summary(model=self._log.save("model.pt", model))
        return self.summary

    def stop(self, why: str | None = None, *, show: Callable[[], None] = lambda: None) -> None:
        """Stop in order, for at most half of `swarm.stop_s`, and write the summary. If that is cut short, leaving the
        context kills what is left at once.

        Args:
            why: a notice that goes before everything else.
            show: called after every record, and when there is none as well.
        """
        try:
            for _ in self._written(chain([_notice(why)] if why else [], self._swarm.stop())):
                show()
        except BaseException:
            self._swarm.give_up()
            raise
        finally:
            self.summary = self._log.write_summary()

    def _how_to_join(self) -> str:
        started = next(peer.started for peer in self.state.live_peers() if peer.started)
        if self.config.train.loop is not None:
            return f"a loop elsewhere joins with ray_gossip.join(model, initial_peers=['{started.multiaddrs[0]}'])"
        words = ["ray-gossip", "peer", str(self.run_dir / "config.yaml"), "--initial_peer", started.multiaddrs[0]]
        return f"from another shell, join with: {shlex.join(words)}"

    def _written(self, records: Iterable[Record | None]) -> Iterator[Record | None]:
        for record in records:
            if record is not None:
                self._log.write(record)
            yield record


def _notice(text: str) -> Notice:
    return Notice(peer_index=-1, wall_time=time.time(), text=text)
