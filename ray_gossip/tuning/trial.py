"""A trial: the run that `train` would do, driven by Tune. Its placement group holds the peers' bundles, one for each.

A class and not a function, because Tune waits for the `cleanup` of a class; a function's `finally` is cut off.
"""

from __future__ import annotations

import contextlib
import json
import math
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ray import tune
from ray.util import get_current_placement_group

from ray_gossip import storage
from ray_gossip.config import Config
from ray_gossip.errors import ConfigError
from ray_gossip.records import Record
from ray_gossip.resources import bundle
from ray_gossip.resume import Resumption, place_of, resumption
from ray_gossip.run import Run
from ray_gossip.telemetry import set_earlier_attempt_aside
from ray_gossip.tuning.metrics import Metrics, Scores
from ray_gossip.tuning.sweep import Sweep

_REPORT_S = 2.0  # a result at least as often: Tune's words, "stop" among them, reach a trial between two results
_SNAPSHOT, _METRICS = "swarm.pt", "metrics.json"  # in a checkpoint of Tune's
_BEGINS = Resumption()
_KEPT = ("local_step", "peer_accuracy", "peer_loss", "train_s", "seconds_to_target", "bytes_to_target")


class SwarmTrial(tune.Trainable):
    """A swarm from its start to its summary, a result for each evaluation of its peers and every two seconds."""

    def setup(self, config: dict[str, Any], *, sweep: Sweep, place: str, modules: list[str]) -> None:
        """Args:
        config: the point of the sweep's space.
        place: the sweep's folder, or a URI. What goes to a URI is written to Tune's folder of the trial on this
            node first; Tune copies it now and then, and `cleanup` at the end.
        modules: folders in which the driver of the sweep finds modules, such as that of `model.factory`.
        """
        self._run: Run | None = None
        self._open = ExitStack()
        self._start: bytes | None = None  # the checkpoint to go on from, and the metrics that it came with
        self._metrics: Metrics = {}
        self._scores: Scores
        self._records: Iterator[Record | None]
        self._local_step: int  # of the latest evaluation that was reported
        sys.path += [folder for folder in modules if folder not in sys.path]
        own_folder = Path(self.logdir)
        self._destination = storage.inside(place, own_folder.name) if storage.is_uri(place) else None
        self._run_dir = own_folder if self._destination else Path(place) / own_folder.name
        self._config, self._tune = _in_own_folder(sweep.config(config)), sweep.settings.tune
        # Tune saves the trials of a population; peers on other nodes see no folder that only this one has
        self._saves_itself = self._tune.scheduler != "pbt" and self._destination is None

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Have the swarm, which is not there before the first `step`, go on from what `save_checkpoint` wrote."""
        self._start = Path(checkpoint, _SNAPSHOT).read_bytes()
        self._metrics = json.loads(Path(checkpoint, _METRICS).read_bytes())

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write what a swarm, of this trial or another, can go on from; this one goes on meanwhile."""
        assert self._run is not None
        Path(checkpoint_dir, _SNAPSHOT).write_bytes(self._run.snapshot())
        Path(checkpoint_dir, _METRICS).write_text(json.dumps(self._metrics))

    def step(self) -> dict[str, Any]:
        run = self._run or self._begin()
        report_by = time.monotonic() + _REPORT_S
        for _ in self._records:
            step = self._scores.evaluated_step()
            # the last evaluation belongs to the last result: no scheduler shall stop a trial that is done
            is_new = self._local_step < step < (run.state.total_steps or math.inf)
            if is_new:
                self._local_step = step
            if is_new or time.monotonic() >= report_by:
                self._metrics = self._scores.metrics(local_step=self._local_step)
                return dict(self._metrics)  # Tune adds its own
        summary = run.finish()
        step = max(self._local_step, self._scores.evaluated_step())
        return {**self._scores.metrics(local_step=step, summary=summary), "done": True}

    def cleanup(self) -> None:
        if self._run is None:
            return
        with self._open:
            if self._run.summary is None:
                self._run.stop("stopped by the sweep")
        if self._destination:
            storage.upload(self._run_dir, self._destination)

    def _begin(self) -> Run:
        """Start the swarm: from what Tune has saved, to whose records its own are added; else where an earlier attempt
        was saved; else from the beginning."""
        place, before = (None, _BEGINS) if self._start is not None else self._earlier()
        self._run = run = self._open.enter_context(
            Run(
                self._config,
                run_id=f"{self.trial_id}-{secrets.token_hex(3)}",
                run_dir=self._run_dir,
                started_at=time.time(),
                group=get_current_placement_group(),
                start=self._start,
                checkpoints=place,
                resumption=before,
            )
        )
        self._start = None
        if before.manifest is not None:
            self._metrics = _told_before(self._run_dir / "result.json")
        self._local_step = int(self._metrics.get("local_step", 0))
        self._scores = Scores(
            run.state,
            target_accuracy=self._tune.target_accuracy,
            before=self._metrics,
            objectives=self._tune.objectives,
        )
        self._records = run.records()
        return run

    def _earlier(self) -> tuple[str | None, Resumption]:
        """Where the peers save themselves, if they do, and from what of it they go on."""
        place = place_of(self._config, self._run_dir) if self._saves_itself else None
        try:
            if place is not None and (self._run_dir / "events.jsonl").exists():
                return place, resumption(self._config, self._run_dir)
        except ConfigError as error:  # whatever is wrong with it, the trial is to be done
            set_earlier_attempt_aside(self._run_dir)
            return place, Resumption(notices=[f"it begins again: {error}"])
        set_earlier_attempt_aside(self._run_dir)
        return place, _BEGINS


def _told_before(results: Path) -> Metrics:
    """What Tune was told of an earlier attempt as of its last evaluation, and is not in the records of its run."""
    lines = results.read_text().splitlines() if results.exists() else []
    for line in reversed(lines):
        with contextlib.suppress(ValueError, TypeError, AttributeError):  # a line that was cut off
            told = {key: float(value) for key in _KEPT if math.isfinite(value := json.loads(line).get(key, math.nan))}
            if told.get("local_step"):
                return told
    return {}


def _in_own_folder(config: Config) -> Config:
    """Below one `checkpoint.place` all trials of all sweeps would have the same names."""
    return config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"place": None})})


def resources(config: Config) -> tune.PlacementGroupFactory:
    """A bundle for each peer. The trial's own process needs as little as that of `train`: nothing."""
    swarm = config.swarm
    return tune.PlacementGroupFactory([{}, *[bundle(swarm)] * swarm.num_peers], strategy=swarm.placement)
