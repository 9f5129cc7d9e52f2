"""Start the peers of a run, watch them, stop them.

The pending item of each peer's stream of reports is its heartbeat: when the actor dies, Ray fails it at once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup

from ray_gossip.config import Config
from ray_gossip.errors import UserError
from ray_gossip.factory import NAMED, Factories
from ray_gossip.records import Notice, PeerLeft, PeerLost, PeerStarted, Record
from ray_gossip.swarm.crew import Crew
from ray_gossip.swarm.draining import Draining
from ray_gossip.swarm.failure import Failure, cause_of, nobody_came_up
from ray_gossip.swarm.known import Known, Saves, done_first, why_no_process
from ray_gossip.swarm.moves import Moves
from ray_gossip.swarm.placement import Places
from ray_gossip.swarm.pulse import Pulse
from ray_gossip.swarm.replacement import Replacements
from ray_gossip.swarm.storm import Storm

_POLL_S = 0.2  # how often the driver looks up from waiting, so that Ctrl-C is answered at once
_SAVES_NOTHING = Saves()
_DRAINED = "its node is being drained: it leaves in order, and goes on elsewhere"


class Swarm:
    """The peers of one run. Use as a context manager: leaving it stops every peer, whatever happened.

    A peer that is lost gets a successor, which joins the others in its place. Never may one that has not taken over a
    model go on by itself: where nobody is left who has one, the successors end as well.

    Its iterators yield None when there is nothing to tell for a moment, so that the caller can look up.

    Args:
        group: a bundle for each peer, reserved by somebody else and left to them; None: the swarm reserves its own.
        start: a snapshot that all peers go on from; None: they begin with a new model.
        storm: faults on purpose; None: none.
    """

    def __init__(
        self,
        config: Config,
        *,
        run_id: str,
        group: PlacementGroup | None = None,
        factories: Factories = NAMED,
        start: bytes | None = None,
        saves: Saves = _SAVES_NOTHING,
        storm: Storm | None = None,
    ) -> None:
        self.config = config
        self._places = Places(config.swarm, group)
        self._streams: dict[Any, int] = {}
        self._training: set[int] = set()  # those that hold the swarm's model, and go on with it
        self._known = {index: Known(samples=saves.samples_of(index)) for index in range(config.swarm.num_peers)}
        self._crew = Crew(
            config, run_id=run_id, places=self._places, known=self._known, factories=factories, start=start, saves=saves
        )
        self._mistakes: dict[int, UserError] = {}  # what a peer raised that the user can mend
        self.would_recur = False  # a peer was lost for a reason that would end any other, too
        self._replacements = Replacements(
            per_peer=config.max_replacements, per_run=config.swarm.max_replacements_per_run
        )
        self._storm = storm
        self._moves = Moves(self._places, Draining().nodes)
        self._pulse = Pulse(config.swarm.silent_s, lambda peer: self._places.state_of(peer, self._known[peer].process))
        self._stop_by: float | None = None  # deadline for the end of everything, from the first word of stopping on

    def __enter__(self) -> Swarm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> Iterator[Record | None]:
        """Start all peers at once; yields each PeerStarted or PeerLost as it happens.

        Raises:
            SwarmError: no peer came up within `swarm.start_s`.
            UserError: no peer came up, for a reason that the user can mend.
        """
        deadline = time.monotonic() + self.config.swarm.start_s
        yield from self._places.reserve(deadline)
        self._crew.create_founders(founders := self._places.with_room())
        for index in self._known.keys() - {*founders}:
            self._replacements.await_room(index)
        causes: dict[int, str] = {}
        while self._crew.starting.are_awaited and time.monotonic() < deadline:
            ready, _ = ray.wait(self._crew.starting.references, timeout=_POLL_S)
            for reference in ready:
                told = self._came_up(reference)
                if isinstance(told, PeerLost):
                    causes[told.peer_index] = told.cause
                yield told
            if not ready:
                yield None
        for index in self._crew.starting.indices:
            causes[index] = f"it did not come up within swarm.start_s={self.config.swarm.start_s:g}"
            yield self._lose(index, causes[index])
        if not self._crew.actors:
            raise nobody_came_up(causes, self._mistakes)

    def run(self) -> Iterator[Record | None]:
        """Let all peers train; yields their records until each has finished or is lost, and gets no successor."""
        self._training = set(self._crew.actors)
        for index in self._training:
            self._replacements.trains(index)
            self._follow(index, founders=len(self._training))
        yield from self._read(deadline=math.inf)

    def save(self, mark: int) -> None:
        """Have all peers that train save themselves, for this checkpoint."""
        for index in self._training:
            self._crew.actors[index].save.remote(mark)

    def stop(self, last_mark: Callable[[int], int] | None = None) -> Iterator[Record | None]:
        """Ask all peers to stop; yields what they still had to say, for at most half of `swarm.stop_s`. Those that are
        not up yet have nothing to say: they are killed.

        Args:
            last_mark: names the checkpoint with which they end, from the local step they have reached; None: with none.
        """
        self._replacements.cancel()
        self._moves.cancel()
        self._crew.drop_starting()
        deadline = self._begin_stop() - self.config.swarm.stop_s / 2
        self._crew.stop(last_mark if self._training else None, within_s=self.config.swarm.stop_s / 8)
        yield from self._read(deadline=deadline)

    @property
    def has_finished(self) -> bool:
        """A peer has."""
        return any(known.finished for known in self._known.values())

    def model(self) -> bytes | None:
        """The merged model from the first peer that took part in the final rounds; None when there is none."""
        return self._crew.answer("model", done_first(self._known.values()))

    def snapshot(self) -> bytes | None:
        """What another swarm can `start` from: the state of the first peer that answers, which stands for all; None
        when no peer is up. Waits for each that does not answer, at most `swarm.final_s`."""
        return self._crew.answer("snapshot", sorted(self._crew.actors.keys() - {*self._crew.starting.indices}))

    def close(self) -> None:
        """End every peer and its processes within `swarm.stop_s` (after `stop`: what is left of it); what has not
        ended by then is killed."""
        self._crew.drop_starting()
        self._crew.close(until=self._begin_stop)
        self._places.release()

    def give_up(self) -> None:
        """Wait for nothing any more: `close` will kill what is left at once."""
        self._stop_by = time.monotonic()

    def _may_start(self, index: int) -> bool:
        """There are others with whom this peer's next process can go on, or it begins with what it has; and room."""
        with_whom = bool(self._training) or (index == self._moves.founder() and not self._crew.is_beginning_again)
        return with_whom and self._places.has_room(index)

    def _create_successor(self, index: int) -> None:
        live = [address for other in sorted(self._training) for address in self._known[other].multiaddrs]
        self._crew.create_successor(index, initial_peers=live, model=self._moves.take_model(index))

    def _came_up(self, reference: Any) -> PeerStarted | PeerLost:
        """What has become of a peer that was being started."""
        index = self._crew.starting.end(reference)
        try:
            started: PeerStarted | Failure = ray.get(reference)
        except ray.exceptions.RayError as error:
            return self._lose(index, cause_of(error))
        if isinstance(started, Failure):
            if started.mistake is not None:
                self._mistakes[index] = started.mistake
            return self._lose(index, f"it could not start: {started}", would_recur=started.would_recur)
        self._known[index].note(started)
        return started

    def _follow(self, index: int, *, founders: int) -> None:
        """Let a peer that is up train, and read what it tells."""
        self._streams[self._crew.actors[index].run.remote(founders=founders)] = index

    def _read(self, *, deadline: float) -> Iterator[Record | None]:
        coming = self._crew.starting, self._replacements, self._moves
        while (self._streams or any(each.are_awaited for each in coming)) and time.monotonic() < deadline:
            for index in self._replacements.take_due(self._may_start):
                self._create_successor(index)
            awaited = [*self._streams, *self._crew.starting.references]
            ready, _ = ray.wait(awaited, timeout=_POLL_S) if awaited else ([], [])
            for reference in ready:
                if reference in self._streams:
                    yield from self._hear(reference)
                elif isinstance(told := self._came_up(reference), PeerLost):
                    yield told
                else:
                    self._follow(told.peer_index, founders=0)  # it says by itself when it takes part
            yield from self._give_up_silent()
            yield from self._move()
            yield from self._strike()
            yield from self._give_up_successors()
            if not ready:
                yield None

    def _hear(self, stream: Any) -> Iterator[Record]:
        index, would_recur = self._streams[stream], False
        try:
            said: list[Record] | Failure = ray.get(next(stream))
        except StopIteration:
            del self._streams[stream]
            self._training.discard(index)
            return
        except ray.exceptions.RayError as error:
            cause = cause_of(error)
        else:
            if not isinstance(said, Failure):
                for record in said:
                    yield self._noted(record) if record.peer_index == index else record  # a guest's
                return
            cause, would_recur = f"it raised {said}", said.would_recur
        yield self._lose(index, cause, would_recur=would_recur)

    def _noted(self, record: Record) -> Record:
        """What a peer says of itself, as it is to be told."""
        index = record.peer_index
        self._known[index].note(record)
        if isinstance(record, PeerStarted):
            self._training.add(index)
            self._replacements.trains(index)
        if isinstance(record, PeerLeft):
            self._training.discard(index)
            if self.config.max_replacements and self._stop_by is None:
                self._moves.has_left(index, self._crew.actors[index])
                return replace(record, is_replaced=True)
        return record

    def _move(self) -> Iterator[Record]:
        """Peers of nodes that are drained leave, and go on elsewhere with all that they hold."""
        for index in self._moves.due(self._training) if self._stop_by is None else ():
            self._crew.actors[index].leave.remote()
            yield _notice(index, _DRAINED)
        for index in self._moves.take_ready():
            self._end(index)
            self._places.move(index)
            self._replacements.await_room(index)

    def _give_up_silent(self) -> Iterator[PeerLost]:
        """A peer whose process does not answer is lost, or the run would wait for it for ever."""
        awaited = {index: self._crew.actors[index] for index in self._streams.values()}
        for index, cause in self._pulse.lost(awaited).items():
            self._places.kill(index, self._known[index].process)
            yield self._lose(index, cause)

    def _strike(self) -> Iterator[Record]:
        if self._storm is not None and self._stop_by is None:
            rounds = {index: self._known[index].round for index in self._training}
            yield from self._storm.strike(self._crew.actors, rounds)

    def _give_up_successors(self) -> Iterator[Record]:
        """Those that do not come up, and all when nobody is left who could give them a model."""
        if self._training or self._moves.has_models or self._crew.is_beginning_again:
            for index in self._crew.starting.overdue():
                yield self._lose(index, f"it did not come up within swarm.start_s={self.config.swarm.start_s:g}")
            return
        for index in sorted({*self._replacements.cancel(), *self._crew.starting.indices, *self._streams.values()}):
            if index in self._crew.actors:
                self._end(index)
            yield _notice(index, why_no_process(self._known[index], others_are_done=self.has_finished))

    def _lose(self, index: int, cause: str, *, would_recur: bool = False) -> PeerLost:
        """End what is left of a peer, and say what becomes of it."""
        self._end(index)
        self.would_recur |= would_recur
        is_done = would_recur or self._known[index].finished is not None
        is_replaced = not is_done and self._replacements.lost(index)
        return PeerLost(peer_index=index, wall_time=time.time(), cause=cause, is_replaced=is_replaced)

    def _end(self, index: int) -> None:
        """Of its process, whatever it does."""
        self._crew.end(index)
        self._streams = {stream: other for stream, other in self._streams.items() if other != index}
        self._moves.forget(index)
        self._training.discard(index)

    def _begin_stop(self) -> float:
        if self._stop_by is None:
            self._stop_by = time.monotonic() + self.config.swarm.stop_s
        return self._stop_by


def _notice(index: int, text: str) -> Notice:
    return Notice(peer_index=index, wall_time=time.time(), text=text)
