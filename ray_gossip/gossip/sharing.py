"""A newcomer asks for a peer's model, and the training thread answers between two local steps: the only moment at which
all of it belongs together."""

from __future__ import annotations

import threading

from ray_gossip.gossip.handover import Handover


class Sharing:
    """Between the thread of hivemind's that serves newcomers and the training thread."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # around the snapshot: a reader must not see half of a new one
        self._asking = threading.Lock()  # one newcomer at a time
        self._asked, self._answered = threading.Event(), threading.Event()
        self._answer: Handover | None = None

    @property
    def is_asked_for(self) -> bool:
        """Whether somebody waits for the model."""
        return self._asked.is_set()

    def answer(self, handover: Handover) -> None:
        """In the training thread, between two local steps."""
        self._asked.clear()
        self._answer = handover
        self._answered.set()

    def ask(self, *, within_s: float) -> Handover | None:
        """The model after the present local step; None when none has ended in time."""
        with self._asking:
            self._answered.clear()
            self._asked.set()
            in_time = self._answered.wait(within_s)
            self._asked.clear()
            answer, self._answer = self._answer, None
            return answer if in_time else None
