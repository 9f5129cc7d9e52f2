"""Whose turn it is with a trainer's state: the loop of local steps has it, and others ask for it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class Turns:
    """Turns alternate: one lock alone would mostly be given back to the loop, which has just let it go."""

    def __init__(self) -> None:
        self._turn, self._waiting = threading.Lock(), threading.Lock()

    @contextlib.contextmanager
    def mine(self) -> Iterator[None]:
        """No other thread changes or reads the state meanwhile."""
        with self._waiting:
            self._turn.acquire()
        try:
            yield
        finally:
            self._turn.release()
