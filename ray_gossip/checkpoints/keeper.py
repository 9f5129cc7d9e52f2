"""The driver's part in checkpoints: when they are due, when they are whole, and which are kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping

from ray_gossip.checkpoints.manifest import BUSY, Manifest, PeerFile, all_in, deal, prune, save
from ray_gossip.config import Config
from ray_gossip.records import Notice, PeerLeft, PeerLost, PeerStarted, Progress, Record, Saved

_PATIENCE = 3  # checkpoints in which a peer may be missing, because it is slower, before it is told


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
        self._asked_at = clock()
        self._samples: dict[int, int] = {}  # that each peer has seen, whichever process it was
        self.resume(None)

    def resume(self, manifest: Manifest | None) -> None:
        """All peers start, and go on from this checkpoint; None: they begin. Later ones are left alone, and may be
        damaged."""
        self._began_at: dict[int, int] = {}  # local step of each peer that is there, where this process of it began
        self._saved: dict[int, dict[int, Saved]] = {}  # by mark and peer index
        self._last: dict[int, int] = {}  # by peer, the mark for which it has last saved itself
        self._has_told_of_others = self._has_told_of_busy = False
        self._num_untold = 0  # incomplete checkpoints that were not told, of a kind that was
        self._asked_for = self.latest = -1  # marks: of the last one that was asked for, of the last one that is whole
        self._own: list[int] = []
        if manifest is not None:
            shares = deal(manifest, num_peers=self._num_peers)
            self._samples = {index: share.samples for index, share in enumerate(shares)}  # also of who comes later
            self._asked_for = self.latest = manifest.mark
            self._own = sorted(each.mark for each in all_in(self.place) if each.mark <= manifest.mark)

    def see(self, record: Record) -> Iterator[Notice]:
        """What a person should know because of a record; mostly nothing."""
        match record:
            case PeerStarted():
                self._began_at[record.peer_index] = record.local_step
                self._samples[record.peer_index] = record.samples
            case Progress():
                self._samples[record.peer_index] = record.samples
                return
            case PeerLost() | PeerLeft():
                self._began_at.pop(record.peer_index, None)
            case Saved():
                self._saved.setdefault(record.mark, {})[record.peer_index] = record
                if record.mark != self._asked_for:  # which says nothing of when a peer saves itself by itself
                    self._last[record.peer_index] = record.mark
            case _:
                return
        yield from self._complete()

    def look(self, how_far: Callable[[], int]) -> None:
        """Ask for a checkpoint, if one is due by time.

        Args:
            how_far: the local step at which the swarm is.
        """
        every_s = self._settings.every_s
        if every_s is None or self._clock() - self._asked_at < every_s:
            return
        if (local_step := how_far()) > self._asked_for:
            self._asked_at, self._asked_for = self._clock(), local_step
            self._ask(local_step)

    def last_mark(self, reached: int) -> int:
        """Of the checkpoint with which a run ends that is stopped.

        Args:
            reached: no periodic checkpoint has a later mark.
        """
        self._asked_for = max(reached, self.latest) + 1
        return self._asked_for

    @property
    def is_up_to_date(self) -> bool:
        """The last checkpoint that was asked for is whole."""
        return self.latest >= self._asked_for

    def close(self) -> Iterator[Notice]:
        """No more is to come."""
        yield from self._complete()  # what was interrupted when it was whole
        if self._num_untold:
            yield Notice.now(f"{self._num_untold} more checkpoints were incomplete: {BUSY}")
        left = sorted(mark for mark in self._saved if mark > self.latest)
        if left:
            last, before = left[-1], f" (as {len(left) - 1} before it)" if len(left) > 1 else ""
            why = f"{len(self._saved[last])} of {len(self._awaited(last))} peers have saved{before}"
            yield self._incomplete(last, why, goes_on=False)
        self._saved.clear()

    def _awaited(self, mark: int) -> list[int]:
        """Peers that belong to a checkpoint: those that are there and began before it. Guests have their own folders,
        and who came after it has nothing to do with it."""
        return [index for index, began in self._began_at.items() if began < mark and index < self._num_peers]

    def _complete(self) -> Iterator[Notice]:
        for mark in sorted(self._saved):
            saved, awaited = self._saved[mark], self._awaited(mark)
            if missing := [index for index in awaited if index not in saved]:
                yield from self._look_for_others(mark, missing)
                continue
            causes = [each.cause for index, each in sorted(saved.items()) if each.cause and index in awaited]
            whole = [each for _, each in sorted(saved.items()) if not each.cause]
            told: list[Notice] = []
            if causes:  # of a peer that is there: without it, what it has seen would be lost
                told = self._lacking(mark, causes[0])
            elif whole and mark > self.latest:
                told = self._write(mark, whole)
            del self._saved[mark]  # not before it is written: Ctrl-C may come at any moment
            yield from told

    def _lacking(self, mark: int, why: str) -> list[Notice]:
        if why == BUSY and self._has_told_of_busy:
            self._num_untold += 1
            return []
        self._has_told_of_busy |= why == BUSY
        return [self._incomplete(mark, why)]

    def _look_for_others(self, mark: int, missing: list[int]) -> Iterator[Notice]:
        """Say once that some peers save themselves at other local steps, or never."""
        never = [index for index in missing if index not in self._last]
        if self._has_told_of_others or mark < self.latest:
            return
        if never and len(self._saved) > _PATIENCE:
            self._has_told_of_others = True
            yield self._incomplete(mark, f"peer {never[0]} has never saved itself: does its loop call peer.checkpoint?")
        elif not never and len(self._saved) > _PATIENCE and all(self._last[index] > mark for index in missing):
            self._has_told_of_others = True
            why = f"peer {missing[0]} saves itself at other local steps"
            yield self._incomplete(mark, f"{why}: call peer.checkpoint after each step, or set checkpoint.every_s")

    def _incomplete(self, mark: int, why: str, *, goes_on: bool = True) -> Notice:
        before = f"the one before, {self.latest}, counts" if self.latest >= 0 else "there is none before it"
        then = "; training goes on" if goes_on else ""
        return Notice.now(f"checkpoint {mark} is incomplete and does not count: {why}; {before}{then}")

    def _write(self, mark: int, saved: list[Saved]) -> list[Notice]:
        there = {each.peer_index for each in saved}
        manifest = Manifest(
            mark=mark,
            run_id=self._run_id,
            wall_time=time.time(),
            model=self._model,
            num_peers=self._num_peers,
            peers=tuple(PeerFile.of(each) for each in saved),
            other_samples=sum(seen for index, seen in self._samples.items() if index not in there),
            metrics={name: value for name, value in self._measured().items() if math.isfinite(value)},
        )
        try:
            save(self.place, manifest)
            self.latest = mark
            self._own = [*(own for own in self._own if own != mark), mark]
            self._own = prune(self.place, self._own, keep=self._settings.keep, better=self._better)
        except OSError as error:
            return [Notice.now(f"checkpoint {mark}: {error.strerror or error}; training goes on")]
        return []

    @property
    def _better(self) -> Callable[[Manifest], float] | None:
        if self._settings.best_by is None:
            return None
        direction, _, name = self._settings.best_by.partition(":")
        sign = 1 if direction == "max" else -1
        return lambda manifest: sign * manifest.metrics.get(name, -sign * math.inf)
