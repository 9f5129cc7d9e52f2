"""Peers that are not up yet."""

from __future__ import annotations

import time
from typing import Any


class Starting:
    """By what each is awaited, and until when.

    Args:
        limit_s: that a successor has to come up; founders have one deadline in common.
    """

    def __init__(self, *, limit_s: float) -> None:
        self._limit_s = limit_s
        self._awaited: dict[Any, int] = {}  # by the reference to what it says of itself
        self._until: dict[int, float] = {}  # of successors

    @property
    def are_awaited(self) -> bool:
        return bool(self._awaited)

    @property
    def references(self) -> list[Any]:
        return list(self._awaited)

    @property
    def indices(self) -> list[int]:
        return list(self._awaited.values())

    def add(self, index: int, actor: Any, *, is_successor: bool = False) -> None:
        self._awaited[actor.started.remote()] = index
        if is_successor:
            self._until[index] = time.monotonic() + self._limit_s

    def end(self, reference: Any) -> int:
        """It is up, or will not be; returns who."""
        self.forget(index := self._awaited[reference])
        return index

    def forget(self, index: int) -> None:
        self._awaited = {reference: other for reference, other in self._awaited.items() if other != index}
        self._until.pop(index, None)

    def overdue(self) -> list[int]:
        """Successors that should be up by now."""
        return [index for index, until in self._until.items() if time.monotonic() > until]
