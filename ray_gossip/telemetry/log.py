"""The files of a run: written by the driver alone, readable at any moment, however the run ends."""

from __future__ import annotations

import json
import math
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ray_gossip.config import dump
from ray_gossip.errors import SwarmError
from ray_gossip.records import Notice, PeerLost, PeerStarted, Record, to_json
from ray_gossip.storage import Journal, write_atomically
from ray_gossip.telemetry.curves import Curves, Point
from ray_gossip.telemetry.event_file import EventFile
from ray_gossip.telemetry.figure import classes_of_peers, who_met_whom
from ray_gossip.telemetry.layout import config_text, custom_scalars, summary_text
from ray_gossip.telemetry.observer import Observer
from ray_gossip.telemetry.summary import Summary, summarise

# What a run overwrites in its folder.
RUN_FILES = ("events.jsonl", "config.yaml", "summary.json", "model.pt")

_ALL: Mapping[str, int] = {}
_PICTURE_S = 30.0  # between two pictures of who met whom; each takes a tenth of a second


class RunLog:
    """Writes what an observer sees of a run.

    Use as a context manager: entering makes the directory, leaving closes every file. A record is in
    `events.jsonl` when `write` returns, even if the driver is killed then. What a full disk does not take is left out,
    which a notice says once; the run goes on, and is written again when there is room.

    Args:
        run_dir: made if missing; files of an earlier part of the run are added to.
        started_at: when the run began, in seconds since 1970; the summary's durations count from there.
            Default: now.
        kept_until: of an interrupted run that goes on: later points in these folders of TensorBoard are void.
    """

    def __init__(
        self,
        run_dir: Path,
        observer: Observer,
        *,
        run_id: str,
        started_at: float | None = None,
        kept_until: Mapping[str, int] = _ALL,
    ) -> None:
        self.run_dir, self.run_id = run_dir, run_id
        self._observer, self._state, self._config = observer, observer.state, observer.config
        self._kept_until = kept_until
        self._started_at = time.time() if started_at is None else started_at
        self._curves = Curves(self._state)
        self._event_files: dict[str, EventFile] = {}  # by the name of the TensorBoard run
        self._pictured_at = time.monotonic()
        self._classes_are_pictured = self._is_drawing = False
        self._files = ExitStack()
        self._events: Journal
        self._told_of_disk = self._is_closed = False

    def __enter__(self) -> RunLog:
        with _or_swarm_error(self.run_dir):
            self.run_dir.mkdir(parents=True, exist_ok=True)
            (self.run_dir / "summary.json").unlink(missing_ok=True)  # of an earlier part: it has not ended any more
        self.save("config.yaml", dump(self._config).encode())
        with _or_swarm_error(self.run_dir / "events.jsonl"):
            self._events = Journal(self.run_dir / "events.jsonl")
        self._files.callback(self._events.close)
        self._say(custom_scalars(self._config), config_text(self._config))
        return self

    def __exit__(self, *_: object) -> None:
        with self._files:
            self._add_picture()
        self._is_closed = True

    def write(self, record: Record) -> None:
        """Show a record to the observer; write what it makes of it to the event log and to TensorBoard."""
        self._append(self._observer.see(record))
        if time.monotonic() - self._pictured_at > _PICTURE_S:
            self._add_picture()
        if isinstance(record, (PeerStarted, PeerLost)) and not self._classes_are_pictured:
            self._add_classes()

    def _append(self, records: Iterable[Record]) -> None:
        for each in records:
            points = list(self._curves.points(each))
            with self._as_far_as_there_is_room():
                self._events.write(f"{dump_json(to_json(each))}\n".encode(errors=_ESCAPED))
                for point in points:
                    self._add(point)

    def write_summary(self, *, model: Path | None = None) -> Summary:
        """Say what is wrong with the end, and write `summary.json` as things stand now; returns what stands in it.

        Args:
            model: where the merged model was saved, if it was.

        Raises:
            SwarmError: as `save`.
        """
        self._append(self._observer.end(is_saved=model is not None))
        summary = summarise(
            self._state,
            run_id=self.run_id,
            engine=self._config.engine,
            started_at=self._started_at,
            ended_at=time.time(),
            run_dir=self.run_dir,
            model=model,
            recovery=self._observer.recovery(),
        )
        text = dump_json(summary, indent=2)
        self.save("summary.json", f"{text}\n".encode(errors=_ESCAPED))
        written: Summary = json.loads(text)
        if not self._is_closed:
            self._say(summary_text(written))
        return written

    def save(self, name: str, content: bytes) -> Path:
        """Write a file of the run, whole; returns where it is.

        Raises:
            SwarmError: the disk does not take it.
        """
        with _or_swarm_error(self.run_dir / name):
            write_atomically(self.run_dir / name, content)
        return self.run_dir / name

    @contextmanager
    def _as_far_as_there_is_room(self) -> Iterator[None]:
        """What curves and events lose to a full disk is not worth the run."""
        try:
            yield
        except OSError as error:
            if not self._told_of_disk:
                self._told_of_disk = True
                text = (
                    f"cannot write to {self.run_dir}: {error.strerror}; the run goes on, and what does not fit is lost"
                )
                self._state.fold(Notice.now(text))

    def _say(self, *values: Any) -> None:
        """What is no curve."""
        step = self._state.last_round.local_step if self._state.last_round else 0
        with self._as_far_as_there_is_room():
            for value in values:
                self._add_value("swarm", value, step=step, wall_time=time.time())

    def _add(self, point: Point) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        value = Summary.Value(tag=point.tag, simple_value=point.value)
        self._add_value(point.run, value, step=point.step, wall_time=point.wall_time)

    def _add_picture(self) -> None:
        """Who averaged with whom so far."""
        self._pictured_at = time.monotonic()
        if self._state.meetings and not self._is_drawing:
            self._is_drawing = True  # who is interrupted here may have imported half of matplotlib
            png = who_met_whom(self._state.meetings, sorted({peer for pair in self._state.meetings for peer in pair}))
            self._is_drawing = False
            last_round = self._state.last_round
            self._add_image("swarm/who_met_whom", png, step=last_round.local_step if last_round else 0)

    def _add_classes(self) -> None:
        """Classes per peer, once every peer has started or is lost."""
        peers = self._state.peers.values()
        if all(peer.started or peer.lost for peer in peers):
            self._classes_are_pictured = True
            counts = {peer.peer_index: peer.started.class_counts for peer in peers if peer.started}
            counts = {peer_index: classes for peer_index, classes in counts.items() if classes}
            if counts:
                self._add_image("swarm/classes_of_peers", classes_of_peers(counts), step=0)

    def _add_image(self, tag: str, png: bytes, *, step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        width, height = struct.unpack(">II", png[16:24])  # of PNG's first chunk
        image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
        with self._as_far_as_there_is_room():
            self._add_value("swarm", Summary.Value(tag=tag, image=image), step=step, wall_time=time.time())

    def _add_value(self, run: str, value: Any, *, step: int, wall_time: float) -> None:
        if run not in self._event_files:
            self._event_files[run] = EventFile(self.run_dir / run, kept_until=self._kept_until.get(run))
            self._files.callback(self._event_files[run].close)
        self._event_files[run].add(value, step=step, wall_time=wall_time)


_ESCAPED = "backslashreplace"  # bytes of a path that are no text become \\udc80 and the like, as JSON writes them


@contextmanager
def _or_swarm_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SwarmError(f"cannot write {path}: {error.strerror}") from error


def dump_json(value: Any, *, indent: int | None = None) -> str:
    """JSON that every parser accepts: a number that is not finite becomes null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False, ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
