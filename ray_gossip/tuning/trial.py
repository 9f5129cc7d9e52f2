"""A trial: the run that `train` would do, driven by Tune. Its placement group holds the peers' bundles, one for each.

A class and not a function, because Tune waits for the `cleanup` of a class; a function's `finally` is cut off.
"""

from __future__ import annotations

import secrets
import sys
import time
from pathlib import Path
from typing import Any

from ray import tune
from ray.util import get_current_placement_group

from ray_gossip import storage
from ray_gossip.config import Config
from ray_gossip.resources import bundle
from ray_gossip.run import Run
from ray_gossip.tuning.metrics import Scores
from ray_gossip.tuning.sweep import Sweep

_REPORT_S = 2.0  # a result at least as often: Tune's words, "stop" among them, reach a trial between two results
_OF_A_RUN = ("config.yaml", "events.jsonl", "summary.json", "model.pt", "swarm", "peer-*")


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
        sys.path += [folder for folder in modules if folder not in sys.path]
        own_folder = Path(self.logdir)
        self._destination = f"{place}/{own_folder.name}" if storage.is_uri(place) else None
        run_dir = own_folder if self._destination else Path(place) / own_folder.name
        _set_earlier_attempt_aside(run_dir)
        self._total_steps, self._local_step = sweep.config(config).train.local_steps, 0
        run = Run(
            sweep.config(config),
            run_id=f"{self.trial_id}-{secrets.token_hex(3)}",
            run_dir=run_dir,
            started_at=time.time(),
            group=get_current_placement_group(),
        )
        self._scores = Scores(run.state, target_accuracy=sweep.settings.tune.target_accuracy)
        self._records = run.records()
        self._run = run.__enter__()

    def step(self) -> dict[str, Any]:
        assert self._run is not None
        report_by = time.monotonic() + _REPORT_S
        for _ in self._records:
            step = self._scores.evaluated_step()
            # the last evaluation belongs to the last result: no scheduler shall stop a trial that is done
            is_new = self._local_step < step < self._total_steps
            if is_new:
                self._local_step = step
            if is_new or time.monotonic() >= report_by:
                return self._scores.metrics(local_step=self._local_step)
        summary = self._run.finish()
        step = max(self._local_step, self._scores.evaluated_step())
        return {**self._scores.metrics(local_step=step, summary=summary), "done": True}

    def cleanup(self) -> None:
        if self._run is None:
            return
        with self._run:
            if self._run.summary is None:
                self._run.stop("stopped by the sweep")
        if self._destination:
            storage.upload(self._run.run_dir, self._destination)


def resources(config: Config) -> tune.PlacementGroupFactory:
    """A bundle for each peer. The trial's own process needs as little as that of `train`: nothing."""
    swarm = config.swarm
    return tune.PlacementGroupFactory([{}, *[bundle(swarm)] * swarm.num_peers], strategy=swarm.placement)


def _set_earlier_attempt_aside(run_dir: Path) -> None:
    """Move what an attempt that failed or was interrupted has left into a folder of its own, `attempt-1`, ..."""
    earlier = [path for pattern in _OF_A_RUN for path in run_dir.glob(pattern)]
    if earlier:
        aside = run_dir / f"attempt-{1 + sum(1 for _ in run_dir.glob('attempt-*'))}"
        aside.mkdir()
        for path in earlier:
            path.rename(aside / path.name)
