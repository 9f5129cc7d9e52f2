"""A run inside a trial of the user's own `ray.tune.Tuner`: `GossipTrainer(...).fit()` in the function that is tuned."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from ray import tune
from ray.util import get_current_placement_group
from ray.util.placement_group import PlacementGroup

from ray_gossip.config import SwarmConfig
from ray_gossip.errors import ConfigError
from ray_gossip.resources import bundle
from ray_gossip.telemetry import Summary, SwarmState, set_earlier_attempt_aside
from ray_gossip.tuning.metrics import Scores

_runs: Counter[str] = Counter()  # that this process has begun, by trial: Tune gives a process to several, in turn


def this_trial() -> WithinTrial | None:
    """That in which this process is; None: in none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is asked outside of a trial
        trial_id = tune.get_context().get_trial_id()
    return WithinTrial(trial_id) if trial_id is not None else None


class WithinTrial:
    """Where the results of a run in this trial go, the room that the trial has reserved, and what Tune is told.

    Tune gets a result each time that all live peers have reported, or been evaluated, once more, as of one worker group
    of Ray Train: schedulers count them as `training_iteration`.
    """

    def __init__(self, trial_id: str) -> None:
        storage = tune.get_context().get_storage()
        is_local = storage.storage_filesystem.type_name == "local"
        # what is in the folder of the process goes to a URI where the Tuner's SyncConfig says sync_artifacts=True
        folder = Path(storage.trial_fs_path) if is_local else Path.cwd()
        _runs[trial_id] += 1
        if _runs[trial_id] == 1:
            set_earlier_attempt_aside(folder)
        self.run_dir = folder if _runs[trial_id] == 1 else folder / f"run-{_runs[trial_id]}"
        self._num_told = 0
        self._scores: Scores | None = None

    def group(self, swarm: SwarmConfig) -> PlacementGroup | None:
        """The trial's own bundles, if it has any; None: the swarm reserves its own.

        Raises:
            ConfigError: they are not made for the peers. Trials that hold what their swarms wait for would never end.
        """
        group = get_current_placement_group()
        wanted = {name: amount for name, amount in bundle(swarm).items() if amount}
        specs = [spec for spec in group.bundle_specs if any(spec.values())] if group is not None else []
        if not specs:
            return None
        if len(specs) != swarm.num_peers or any(spec != wanted for spec in specs):
            raise ConfigError(
                f"this trial reserves {specs}, not a bundle for each peer: tune.with_resources(trial, "
                f"tune.PlacementGroupFactory([{{}}, *[{wanted}] * {swarm.num_peers}]))"
            )
        return group

    def see(self, state: SwarmState) -> None:
        """Tell Tune, if there is something new.

        Raises:
            SystemExit: Tune has stopped the trial.
        """
        num = min((peer.num_measured for peer in state.live_peers()), default=0)
        if num > self._num_told:
            self._num_told = num
            tune.report(self._metrics(state))

    def end(self, state: SwarmState, summary: Summary) -> None:
        """The last result, with what the summary says of the merged model."""
        tune.report(self._metrics(state, summary))

    def _metrics(self, state: SwarmState, summary: Summary | None = None) -> dict[str, Any]:
        self._scores = self._scores or Scores(state, target_accuracy=None)
        step = min((peer.local_step for peer in state.live_peers()), default=0)
        metrics = self._scores.metrics(local_step=step, summary=summary)
        is_loop = state.total_steps is None  # which has no evaluation of ours
        return {name: value for name, value in metrics.items() if not (is_loop and math.isnan(value))}
