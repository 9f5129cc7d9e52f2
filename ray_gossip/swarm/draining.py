"""Which nodes Ray is about to take away: spot instances that have got their notice, nodes that somebody drains."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import ray
from ray import _raylet

_EVERY_S, _ANSWER_S = 1.0, 1.0


class Draining:
    """Asks Ray now and then.

    Args:
        clock: seconds, from any moment.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._gcs: Any = None
        self._asked_at = -_EVERY_S
        self._nodes: frozenset[str] = frozenset()

    def nodes(self) -> frozenset[str]:
        """Their ids, as of the last time that Ray has answered."""
        if self._clock() - self._asked_at >= _EVERY_S:
            self._asked_at = self._clock()
            if self._gcs is None:
                address = ray.get_runtime_context().gcs_address
                self._gcs = _raylet.GcsClient(address=address)  # type: ignore[attr-defined]
            with contextlib.suppress(ray.exceptions.RayError):  # it is busy, or being started again
                self._nodes = frozenset(self._gcs.get_draining_nodes(timeout=_ANSWER_S))
        return self._nodes
