"""What a training process and its sidecar tell each other without a message: numbers in shared memory."""

from __future__ import annotations

import time
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

_BUSY_S = 2.0  # a trainer that has not stepped for this long, and for several usual steps, does something else
_BUSY_STEPS = 4
_GLANCE_S = 5.0  # silence between two looks counts as so much at most


class _At(IntEnum):
    STEPPED_NS = 0  # when the trainer took its last local step, CLOCK_MONOTONIC, which all processes share
    USUAL_STEP_NS = 1  # how long its local steps usually take
    CALLED = 2  # the latest round to which a groupmate has called this peer
    IS_REDUCING = 3  # 1 in the all-reduce of a round, 0 before and after
    TICKED_NS = 4  # when the averager's event loop last went round


class Pulse:
    """How long another process has given no sign of life, as far as this one was there to see it. One that wakes after
    a minute in which all of its machine stood still knows nothing of the others yet."""

    def __init__(self) -> None:
        self._beat, self._silent_s, self._felt_at = -1, 0.0, time.monotonic()

    def feel(self, beat: int) -> float:
        """Seconds since the beat last changed.

        Args:
            beat: any number that changes with each sign of life.
        """
        now = time.monotonic()
        self._silent_s = 0.0 if beat != self._beat else self._silent_s + min(now - self._felt_at, _GLANCE_S)
        self._beat, self._felt_at = beat, now
        return self._silent_s


class Signals:
    """Numbers in shared memory; each is written by one side only.

    Args:
        values: int64, at least as many as there are signals.
    """

    def __init__(self, values: NDArray[np.int64]) -> None:
        self._values = values  # read and written at every local step: as a tensor it would take longer

    def begin(self) -> None:
        """By the training process, before the network side has this."""
        self._values[_At.CALLED] = -1
        self._values[_At.STEPPED_NS] = self._values[_At.TICKED_NS] = time.monotonic_ns()

    # ---- the training process says --------------------------------------------------------------------------------

    def stepped(self, usual_step_s: float) -> None:
        """A local step is done."""
        self._values[_At.STEPPED_NS] = time.monotonic_ns()
        self._values[_At.USUAL_STEP_NS] = int(usual_step_s * 1e9)

    @property
    def called(self) -> int:
        """The latest round to which this peer was called; -1: none yet."""
        return int(self._values[_At.CALLED])

    @property
    def is_reducing(self) -> bool:
        """Whether the round in flight has its group, and averages."""
        return bool(self._values[_At.IS_REDUCING])

    @property
    def ticked_ns(self) -> int:
        """When the averager last gave a sign of life, CLOCK_MONOTONIC."""
        return int(self._values[_At.TICKED_NS])

    # ---- the sidecar says ------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """The averager is alive."""
        self._values[_At.TICKED_NS] = time.monotonic_ns()

    def call(self, round: int) -> None:
        """A groupmate has begun this round."""
        self._values[_At.CALLED] = max(round, self.called)

    def reduce(self, begins: bool) -> None:
        """An all-reduce begins, or has ended."""
        self._values[_At.IS_REDUCING] = int(begins)

    @property
    def busy_s(self) -> float:
        """For how long the trainer has taken no local step, if it does something else: an evaluation, say. Else 0."""
        silent_s = (time.monotonic_ns() - int(self._values[_At.STEPPED_NS])) / 1e9
        usual_s = int(self._values[_At.USUAL_STEP_NS]) / 1e9
        return silent_s if silent_s > max(_BUSY_S, _BUSY_STEPS * usual_s) else 0.0
