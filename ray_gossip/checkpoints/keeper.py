"""The driver's part in checkpoints: when they are due, when they are whole, and which are kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping

from ray_gossip.checkpoints.manifest import Manifest, PeerFile, prune, save
from ray_gossip.config import Config
from ray_gossip.records import Notice, PeerLeft, PeerLost, PeerStarted, Record, Saved


class Keeper:
    """Give it each record of a run, and look up now and then.

    Args:
        place: of the checkpoints.
        ask: has all peers save themselves, for this mark.
        measured: what the peers were evaluated at, or reported, as of late: the mean.
    """

    def __init__(
        self,
        config: Config,
        *,
        place: str,
        run_id: str,
        ask: Callable[[int], None],
        measured: Callable[[], Mapping[str, float]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.place = place
        self._settings, self._model = config.checkpoint, config.model.model_dump(mode="json")
        self._run_id, self._ask, self._measured, self._clock = run_id, ask, measured, clock
        self._num_peers = config.swarm.num_peers
        self._began_at: dict[int, int] = {}  # local step of each peer that is there, where this process of it began
        self._saved: dict[int, dict[int, Saved]] = {}  # by mark and peer index
        self._asked_at = clock()
        self._asked_for = -1
        self.latest = -1  # the mark of the last one that is whole

    def see(self, record: Record) -> Iterator[Notice]:
        """What a person should know because of a record; mostly nothing."""
        match record:
            case PeerStarted():
                self._began_at[record.peer_index] = record.local_step
            case PeerLost() | PeerLeft():
                self._began_at.pop(record.peer_index, None)
            case Saved():
                self._saved.setdefault(record.mark, {})[record.peer_index] = record
                if record.cause:
                    yield _notice(record.peer_index, f"checkpoint {record.mark}: {record.cause}; training goes on")
            case _:
                return
        yield from self._complete()

    def look(self, local_step: int) -> None:
        """Ask for a checkpoint, if one is due by time.

        Args:
            local_step: how far the swarm is.
        """
        every_s = self._settings.every_s
        if every_s is not None and self._clock() - self._asked_at >= every_s and local_step > self._asked_for:
            self._asked_at, self._asked_for = self._clock(), local_step
            self._ask(local_step)

    def close(self) -> Iterator[Notice]:
        """No more is to come: what is there of the latest counts, if it is anything."""
        self._began_at.clear()
        yield from self._complete()

    def _complete(self) -> Iterator[Notice]:
        for mark in sorted(self._saved):
            saved = self._saved[mark]
            # who came after it has nothing to do with it; guests have their own folders
            awaited = [index for index, began in self._began_at.items() if began < mark and index not in saved]
            if any(index < self._num_peers for index in awaited):
                continue
            del self._saved[mark]
            whole = [each for each in saved.values() if not each.cause]
            if whole and mark > self.latest:
                yield from self._write(mark, whole)

    def _write(self, mark: int, saved: list[Saved]) -> Iterator[Notice]:
        manifest = Manifest(
            mark=mark,
            run_id=self._run_id,
            wall_time=time.time(),
            model=self._model,
            peers=tuple(PeerFile.of(each) for each in sorted(saved, key=lambda each: each.peer_index)),
            metrics={name: value for name, value in self._measured().items() if math.isfinite(value)},
        )
        try:
            save(self.place, manifest)
            self.latest = mark
            prune(self.place, keep=self._settings.keep, better=self._better)
        except OSError as error:
            yield _notice(-1, f"checkpoint {mark} has no manifest, and does not count: {error.strerror or error}")

    @property
    def _better(self) -> Callable[[Manifest], float] | None:
        if self._settings.best_by is None:
            return None
        direction, _, name = self._settings.best_by.partition(":")
        sign = 1 if direction == "max" else -1
        return lambda manifest: sign * manifest.metrics.get(name, -sign * math.inf)


def _notice(index: int, text: str) -> Notice:
    return Notice(peer_index=index, wall_time=time.time(), text=text)
