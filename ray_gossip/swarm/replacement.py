"""When a lost peer gets a successor: at once, later after pauses, and not for ever."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

STEADY_S = 60.0  # a peer that has trained for so long was no failed start: its next loss begins a new row
_LONGEST_PAUSE_S = 60.0


@dataclass
class _Row:
    """Losses of one peer with less than STEADY_S of training in between."""

    length: int = 0
    training_since: float | None = None  # None: it does not


class Replacements:
    """The successors that are still to be started, and the budget for them.

    Args:
        per_peer: that one peer may have in a row.
        per_run: that all may have.
        clock: seconds, from any moment.
    """

    def __init__(self, *, per_peer: int, per_run: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_peer, self._left, self._clock = per_peer, per_run, clock
        self._rows: dict[int, _Row] = {}
        self._due: dict[int, float] = {}  # by peer index

    def trains(self, index: int) -> None:
        """This peer takes part."""
        self._rows.setdefault(index, _Row()).training_since = self._clock()

    def lost(self, index: int) -> bool:
        """Whether this peer, which is lost, gets a successor."""
        row, now = self._rows.setdefault(index, _Row()), self._clock()
        if row.training_since is not None and now - row.training_since >= STEADY_S:
            row.length = 0
        row.training_since = None
        if row.length >= self._per_peer or not self._left:
            return False
        row.length += 1
        self._left -= 1
        self._due[index] = now + (0.0 if row.length == 1 else min(_LONGEST_PAUSE_S, 2.0 ** (row.length - 2)))
        return True

    def await_room(self, index: int) -> None:
        """A process of this peer is to be started as soon as there is room; it is no loss."""
        self._due[index] = self._clock()

    def take_due(self, may_start: Callable[[int], bool] = lambda _: True) -> list[int]:
        """Peers whose next processes are to be started now."""
        due = [index for index, at in self._due.items() if at <= self._clock() and may_start(index)]
        for index in due:
            del self._due[index]
        return due

    @property
    def are_awaited(self) -> bool:
        return bool(self._due)

    def cancel(self) -> list[int]:
        """No more successors; returns the peers that were to have one."""
        due, self._due = list(self._due), {}
        self._left = 0
        return due
