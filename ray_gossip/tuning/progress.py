"""What a person sees of a sweep while it runs: a line for each trial that starts or ends, and one now and then."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from ray_gossip.tuning.settings import Objective, is_reported, metric_of

LOG = logging.getLogger("ray_gossip.sweep")  # a logger, because Tune pickles its callbacks: a stream cannot go along

_STATUS_S = 15.0  # between two status lines


class Progress(Callback):
    """Tells what becomes of the trials."""

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self._told_at = time.monotonic()
        self._reported = [metric_of(objective) for objective in objectives if is_reported(objective)]

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        checkpoint = trial.latest_checkpoint_result
        if checkpoint is None:
            LOG.info("%s starts: %s", trial, describe(trial.config))
            return
        origin = Path(checkpoint.checkpoint.path).parent.name  # the folder of the trial that was saved
        source = f" from {origin}" if origin != str(trial) else ""
        step, values = checkpoint.metrics["local_step"], describe(trial.config)
        LOG.info("%s goes on%s at step %d with %s", trial, source, step, values)

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        LOG.info("%s failed and is started again: %s", trial, cause_of(trial))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        LOG.info("%s failed: %s", trial, cause_of(trial))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        result = trial.last_result
        if result.get("finished"):
            LOG.info("%s finished: %s", trial, self._measured(result, "merged"))
        else:
            step = result.get("local_step", 0)
            LOG.info("%s is stopped early at step %d: %s", trial, step, self._measured(result, "peer"))

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        if time.monotonic() - self._told_at < _STATUS_S:
            return
        self._told_at = time.monotonic()
        running = [trial for trial in trials if trial.status == Trial.RUNNING]
        ended = [trial for trial in trials if trial.is_finished()]
        parts = [f"{trial} {self._where(trial.last_result or {})}" for trial in running]
        LOG.info("; ".join([f"{len(ended)} trials ended, {len(running)} running", *parts]))

    def _where(self, result: Mapping[str, Any]) -> str:
        if not result.get("local_step"):
            return f"has not {'reported' if self._reported else 'been evaluated'} yet"
        return f"at step {result['local_step']}, {self._measured(result, 'peer')}"

    def _measured(self, result: Mapping[str, Any], whose: str) -> str:
        """What is reported and compared; else accuracy, or the loss where there is none."""
        said = "merged " if whose == "merged" else ""
        names = {name: name for name in self._reported} | {
            f"{said}{name}": f"{whose}_{name}" for name in ("accuracy", "loss")
        }
        for name, key in names.items():
            value = result.get(key, math.nan)
            if math.isfinite(value):
                return f"{name} {value:.4f}"
        return f"{next(iter(names))} nan"


def describe(point: Mapping[str, Any]) -> str:
    """A point of the space in one line."""
    return ", ".join(f"{key}={_short(value)}" for key, value in point.items()) or "the config as it is"


def cause_of(trial: Trial) -> str:
    """Why a trial failed, in one line: the exception at the end of the traceback that Tune wrote down."""
    files = [Path(trial.local_path) / "error.txt"] if trial.local_path else []
    texts = [file.read_text() for file in files if file.is_file()] or [trial.get_error() or ""]
    lines = [line.strip() for line in texts[-1].splitlines() if re.match(r"[\w.]+(Error|Exception|Exit)\b", line)]
    return re.sub(r"^[\w.]*\.(?=\w+(: |$))", "", lines[-1]) if lines else "its process died"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
