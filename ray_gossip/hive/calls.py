"""Calls from a training process to its averager process, and their answers.

hivemind's own future would do, at the price of two descriptors passed through a socket for each call, 2 ms on busy
cores. Here requests go through hivemind's pipe, answers through one of ours.
"""

from __future__ import annotations

import itertools
import multiprocessing
import threading
from concurrent.futures import Future
from typing import Any

from ray_gossip.errors import RayGossipError, SwarmError

AVERAGER_DIED = "the averager process of this peer died"


class Calls:
    """Made by the training process before it forks the averager."""

    def __init__(self) -> None:
        self._reader, self._writer = multiprocessing.Pipe(duplex=False)
        self._numbers = itertools.count()
        self._futures: dict[int, Future[Any]] = {}
        self._lock = threading.Lock()  # of what follows
        self._has_ended = False

    # ---- in the training process ----------------------------------------------------------------------------------

    def listen(self) -> None:
        """From now on answers arrive. After the fork, so that the end of the averager is the end of this pipe."""
        self._writer.close()
        threading.Thread(target=self._receive, name="answers of the averager", daemon=True).start()

    def open(self) -> tuple[int, Future[Any]]:
        """A number for the next call, and the future of its answer; SwarmError if the averager process ends first."""
        number, future = next(self._numbers), Future[Any]()
        with self._lock:
            if self._has_ended:
                future.set_exception(SwarmError(AVERAGER_DIED))
            else:
                self._futures[number] = future
        return number, future

    def _receive(self) -> None:
        try:
            while True:
                number, value, error = self._reader.recv()
                with self._lock:
                    future = self._futures.pop(number)
                if isinstance(error, RayGossipError):
                    future.set_exception(error)
                elif error is not None:
                    future.set_exception(RuntimeError(f"in the averager process: {error}"))
                else:
                    future.set_result(value)
        except (EOFError, OSError):
            pass  # it has ended
        finally:  # an answer that cannot be read ends this thread too, and then nobody may wait for one
            with self._lock:
                self._has_ended = True
                for future in self._futures.values():
                    future.set_exception(SwarmError(AVERAGER_DIED))
                self._futures.clear()

    # ---- in the averager process ----------------------------------------------------------------------------------

    def answer(self, number: int, value: Any, error: RayGossipError | str | None) -> None:
        """Blocks while the pipe is full. One thread at a time.

        Args:
            error: what was raised, if there is no value: of a bug, the traceback.
        """
        self._writer.send((number, value, error))
