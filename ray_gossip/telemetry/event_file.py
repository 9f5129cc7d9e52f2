"""One of TensorBoard's event files, in which nothing is ever half written."""

from __future__ import annotations

import itertools
import os
import socket
import time
from pathlib import Path
from typing import Any

from ray_gossip.storage import Journal

_NUMBERS = itertools.count()  # of the files that this process has begun


class EventFile:
    """TensorBoard's own writer has a thread for each file, which dies for good when the disk is full.

    Args:
        folder: made if missing; TensorBoard shows it as a run. Raises OSError, as `add` does.
        kept_until: what earlier files of the folder hold of later steps was lost.
    """

    def __init__(self, folder: Path, *, kept_until: int | None = None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        name = f"events.out.tfevents.{now:010.0f}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS)}"
        self._journal = Journal(folder / name)
        self._records = RecordWriter(self._journal)
        self._is_begun = False
        self._header = [Event(wall_time=now, file_version="brain.Event:2")]
        if kept_until is not None:
            session = SessionLog(status=SessionLog.START)
            self._header.append(Event(wall_time=now, step=kept_until + 1, session_log=session))

    def add(self, value: Any, *, step: int, wall_time: float) -> None:
        """Add a `Summary.Value`; it is in the file then, or (OSError) nothing of it."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        if not self._is_begun:
            for header in self._header:
                self._records.write(header.SerializeToString())
            self._is_begun = True
        event = Event(wall_time=wall_time, step=step, summary=Summary(value=[value]))
        self._records.write(event.SerializeToString())

    def close(self) -> None:
        self._journal.close()
