"""What nobody needs any more once a trial is done."""

from __future__ import annotations

import contextlib
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from ray_gossip import storage
from ray_gossip.resume import CHECKPOINTS


class Spent(Callback):
    """Removes the checkpoints of trials that have finished or are stopped early: nothing goes on from there. Those of
    trials that failed or were interrupted stay.

    Args:
        place: the sweep's folder.
    """

    def __init__(self, place: str) -> None:
        self._place = place

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        with contextlib.suppress(FileNotFoundError):  # it was too short for any
            storage.remove_folder(storage.inside(storage.inside(self._place, str(trial)), CHECKPOINTS))
