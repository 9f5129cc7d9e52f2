"""Start the peers of a run, watch them, stop them.

The pending item of each peer's stream of reports is its heartbeat: when the actor dies, Ray fails it at once.
"""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ray_gossip.config import Config
from ray_gossip.errors import SwarmError, UserError
from ray_gossip.factory import NAMED, Factories
from ray_gossip.records import Notice, PeerFinished, PeerLost, PeerStarted, Record
from ray_gossip.resources import bundle, num_that_fit
from ray_gossip.swarm.actor import PeerActor, pack
from ray_gossip.swarm.cluster import nodes
from ray_gossip.swarm.failure import Failure
from ray_gossip.swarm.pulse import Pulse

_POLL_S = 0.2  # how often the driver looks up from waiting, so that Ctrl-C is answered at once
_ROOM_POLL_S = 1  # the same while Ray looks for room; there it counts whole seconds
_PATIENCE_S = 3.0  # a cluster that has room says so sooner; then the user is told what is awaited


class Swarm:
    """The peers of one run. Use as a context manager: leaving it stops every peer, whatever happened.

    Its iterators yield None when there is nothing to tell for a moment, so that the caller can look up.

    Args:
        group: a bundle for each peer, reserved by somebody else and left to them; None: the swarm reserves its own.
        start: a snapshot that all peers go on from; None: they begin with a new model.
    """

    def __init__(
        self,
        config: Config,
        *,
        run_id: str,
        group: PlacementGroup | None = None,
        factories: Factories = NAMED,
        start: bytes | None = None,
    ) -> None:
        self.config, self.run_id = config, run_id
        self._start_from = start
        self._luggage = pack(factories)
        self._group, self._owns_group = group, group is None
        self._actors: dict[int, Any] = {}  # live peers by index
        self._starting: dict[Any, int] = {}  # those of them that are not up yet, by the reference that awaits it
        self._streams: dict[Any, int] = {}
        self._finished: dict[int, PeerFinished] = {}
        self._pulse = Pulse(limit_s=config.swarm.silent_s)
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
        if self._group is None:
            yield from self._reserve(deadline)
        self._create_actors()
        causes: dict[int, str] = {}
        mistakes: dict[int, UserError | None] = {}
        while self._starting and time.monotonic() < deadline:
            ready, _ = ray.wait(list(self._starting), timeout=_POLL_S)
            for reference in ready:
                index = self._starting.pop(reference)
                try:
                    started: PeerStarted | Failure = ray.get(reference)
                except ray.exceptions.RayError as error:
                    causes[index] = _cause(error)
                else:
                    if isinstance(started, PeerStarted):
                        yield started
                        continue
                    causes[index] = f"it could not start: {started}"
                    mistakes[index] = started.mistake
                yield self._lose(index, causes[index])
            if not ready:
                yield None
        for index in self._drop_starting():
            causes[index] = f"it did not come up within swarm.start_s={self.config.swarm.start_s:g}"
            yield _lost(index, causes[index])
        if not self._actors:
            first = min(causes)  # the others join through it: its cause is behind theirs
            if mistake := mistakes.get(first):
                raise mistake
            raise SwarmError(f"no peer came up; peer {first}: {causes[first].splitlines()[0]}")

    def run(self) -> Iterator[Record | None]:
        """Let all peers train; yields their records until each has finished or is lost."""
        founders = len(self._actors)
        self._streams = {actor.run.remote(founders=founders): index for index, actor in self._actors.items()}
        yield from self._read(deadline=math.inf)

    def stop(self) -> Iterator[Record | None]:
        """Ask all peers to stop; yields what they still had to say, for at most half of `swarm.stop_s`.

        Peers that are not up yet have nothing to say: they are killed.
        """
        self._drop_starting()
        for actor in self._actors.values():
            actor.stop.remote()
        yield from self._read(deadline=self._begin_stop() - self.config.swarm.stop_s / 2)

    def model(self) -> bytes | None:
        """The merged model from the first peer that took part in the final rounds; None when there is none."""
        averaged_first = sorted(self._finished.values(), key=lambda f: (f.final_outcome != "averaged", f.peer_index))
        return self._from_one("model", [finished.peer_index for finished in averaged_first])

    def snapshot(self) -> bytes | None:
        """What another swarm can `start` from: the state of the first peer that answers, which stands for all; None
        when no peer is up. Waits for each that does not answer, at most `swarm.final_s`."""
        return self._from_one("snapshot", sorted(self._actors.keys() - self._starting.values()))

    def _from_one(self, what: str, indices: Sequence[int]) -> bytes | None:
        """What the first of these peers that answers has to give."""
        for index in indices:
            if index in self._actors:
                with contextlib.suppress(ray.exceptions.RayError):  # it is lost, and its stream will say why
                    method = getattr(self._actors[index], what)
                    given: bytes = ray.get(method.remote(), timeout=self.config.swarm.final_s)
                    return given
        return None

    def close(self) -> None:
        """End every peer and its processes within `swarm.stop_s` (after `stop`: what is left of it); what has not
        ended by then is killed."""
        self._drop_starting()
        shutdowns = [actor.shutdown.remote() for actor in self._actors.values()]
        if shutdowns:
            left_s = self._begin_stop() - time.monotonic()
            ray.wait(shutdowns, num_returns=len(shutdowns), timeout=max(0.0, left_s))
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors.clear()
        if self._group is not None and self._owns_group:
            remove_placement_group(self._group)
            self._group = None

    def give_up(self) -> None:
        """Wait for nothing any more: `close` will kill what is left at once."""
        self._stop_by = time.monotonic()

    def _reserve(self, deadline: float) -> Iterator[Record | None]:
        """Wait until Ray has set a bundle aside for every peer."""
        swarm = self.config.swarm
        wanted = f"{swarm.num_peers} times {bundle(swarm)}"
        self._group = placement_group([bundle(swarm)] * swarm.num_peers, strategy=swarm.placement)
        if num_that_fit(swarm, nodes()):
            why, fix = "other jobs hold the resources", "wait for them, or ask for less"
        else:
            why, fix = "nodes are missing, which its autoscaler is to bring", "ask for less, or raise swarm.start_s"
        say_at = time.monotonic() + _PATIENCE_S
        while not self._group.wait(_ROOM_POLL_S):
            if time.monotonic() >= deadline:
                limit_s = swarm.start_s
                raise SwarmError(f"Ray found no room for {wanted} within swarm.start_s={limit_s:g}: {why}; {fix}")
            if time.monotonic() >= say_at:
                say_at = math.inf
                yield _notice(f"waiting for Ray to find room for {wanted}: {why}")
            yield None

    def _create_actors(self) -> None:
        swarm = self.config.swarm
        loopback = len(nodes()) == 1
        first_peer: list[Any] = []
        luggage, start = ray.put(self._luggage), ray.put(self._start_from)  # once, however many peers, however large
        self._start_from = None
        for index in range(swarm.num_peers):
            actor = PeerActor.options(  # type: ignore[attr-defined]
                name=f"{self.run_id}/peer-{index:02d}",
                num_cpus=swarm.cpus_per_peer,
                num_gpus=swarm.gpus_per_peer,
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, index),
                runtime_env={"env_vars": {"RAY_worker_niceness": "0"}},
            ).remote(
                self.config,
                run_id=self.run_id,
                peer_index=index,
                first_peer=first_peer,
                loopback=loopback,
                luggage=luggage,
                start=start,
            )
            self._actors[index] = actor
            self._starting[actor.started.remote()] = index
            if index == 0:
                first_peer = [actor.multiaddrs.remote()]

    def _read(self, *, deadline: float) -> Iterator[Record | None]:
        while self._streams and time.monotonic() < deadline:
            ready, _ = ray.wait(list(self._streams), timeout=_POLL_S)
            for stream in ready:
                index = self._streams[stream]
                try:
                    said: list[Record] | Failure = ray.get(next(stream))
                except StopIteration:
                    del self._streams[stream]
                    continue
                except ray.exceptions.RayError as error:
                    cause = _cause(error)
                else:
                    if not isinstance(said, Failure):
                        self._finished.update({r.peer_index: r for r in said if isinstance(r, PeerFinished)})
                        yield from said
                        continue
                    cause = f"it raised {said}"
                del self._streams[stream]
                yield self._lose(index, cause)
            yield from self._give_up_silent()
            if not ready:
                yield None

    def _give_up_silent(self) -> Iterator[PeerLost]:
        """A peer whose process does not answer is lost, or the run would wait for it for ever."""
        awaited = {index: self._actors[index] for index in self._streams.values()}
        for index in self._pulse.silent(awaited):
            self._streams = {stream: other for stream, other in self._streams.items() if other != index}
            ray.kill(self._actors.pop(index))
            limit_s = self.config.swarm.silent_s
            yield _lost(index, f"its process has not answered for swarm.silent_s={limit_s:g}: it is stopped, or hangs")

    def _lose(self, index: int, cause: str) -> PeerLost:
        ray.kill(self._actors.pop(index))  # it may live on, when it was only its code that raised
        return _lost(index, cause)

    def _drop_starting(self) -> list[int]:
        """Kill the peers that are not up yet, which could not answer; returns their indices."""
        dropped = list(self._starting.values())
        self._starting.clear()
        for index in dropped:
            ray.kill(self._actors.pop(index))
        return dropped

    def _begin_stop(self) -> float:
        if self._stop_by is None:
            self._stop_by = time.monotonic() + self.config.swarm.stop_s
        return self._stop_by


def _cause(error: ray.exceptions.RayError) -> str:
    """Why Ray lost a peer: a sentence, and what Ray knows below it."""
    text = re.sub(r"\x1b\[\d*m", "", str(error)).strip()
    text = text.partition(" Some common causes include")[0]  # a paragraph of guesses
    if isinstance(error, ray.exceptions.RayTaskError):
        return f"it raised {type(error.cause).__name__}: {error.cause}\n{text}"
    return f"its {'node' if 'node has died' in text else 'process'} died\n{text}"


def _lost(index: int, cause: str) -> PeerLost:
    return PeerLost(peer_index=index, wall_time=time.time(), cause=cause)


def _notice(text: str) -> Notice:
    return Notice(peer_index=-1, wall_time=time.time(), text=text)
