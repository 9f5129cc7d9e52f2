"""Which trial comes next, and which are stopped early: Tune's own searchers and schedulers, joined to a sweep."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import Searcher

from ray_gossip.errors import ConfigError
from ray_gossip.tuning.metrics import comparable
from ray_gossip.tuning.settings import Objective, larger_is_better
from ray_gossip.tuning.space import Choice, Distribution
from ray_gossip.tuning.sweep import BASELINE, NO_BASELINE, Point, Sweep

_TRIES = 100  # suggestions in a row whose values do not go together; then the search is over


class Points(Searcher):
    """Known points in their order, then what a searcher that learns suggests, if there is one."""

    def __init__(self, sweep: Sweep, points: list[Point], *, learning: Searcher | None = None) -> None:
        super().__init__()
        self._sweep, self._left, self._learning = sweep, list(points), learning
        self._suggested: dict[str, str] = {}  # trial -> its name to the searcher that learns

    def suggest(self, trial_id: str) -> Any:
        if self._left:
            return self._left.pop(0)
        if self._learning is None:
            return Searcher.FINISHED
        for attempt in range(_TRIES):
            name = f"{trial_id}-{attempt}"
            point = self._learning.suggest(name)
            try:
                self._sweep.config(point)
            except ConfigError:
                # a failure would teach it nothing: it would suggest the same again
                self._learning.on_trial_complete(name, self._told({}))
            else:
                self._suggested[trial_id] = name
                return {**point, **({BASELINE: NO_BASELINE} if self._sweep.settings.tune.baselines else {})}
        return Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if self._learning is not None and trial_id in self._suggested:
            told = self._told(result) if result else None
            self._learning.on_trial_complete(self._suggested[trial_id], told, error)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """The searcher learns from ends only; which trial is stopped early is the scheduler's business."""

    def _told(self, result: dict[str, Any]) -> dict[str, float]:
        return {objective: comparable(objective, result) for objective in self._sweep.settings.tune.objectives}

    def set_search_properties(self, metric: str | None, mode: str | None, config: Any, **spec: Any) -> bool:
        return True

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_bytes(pickle.dumps((self._left, self._suggested, self._learning)))

    def restore(self, checkpoint_path: str) -> None:
        saved = Path(checkpoint_path).read_bytes()  # in the folder of this sweep, by its own driver
        self._left, self._suggested, self._learning = pickle.loads(saved)  # noqa: S301


def searcher(sweep: Sweep, points: list[Point]) -> Searcher:
    """These points, and with searcher=optuna what Optuna makes of them."""
    settings = sweep.settings.tune
    if settings.searcher != "optuna":
        return Points(sweep, points)
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = OptunaSearch.convert_search_space({key: _domain(each) for key, each in sweep.space.items()})
    modes = ["max" if larger_is_better(objective) else "min" for objective in settings.objectives]
    return Points(
        sweep,
        points,
        learning=OptunaSearch(space, metric=list(settings.objectives), mode=modes, seed=sweep.base.seed),
    )


def scheduler(sweep: Sweep, *, max_steps: int, num_at_once: int) -> TrialScheduler:
    """Compares the trials by the evaluations of their peers.

    Args:
        max_steps: local steps of the longest trial.
        num_at_once: trials that the cluster holds at once.
    """
    settings = sweep.settings.tune
    metric = sweep.settings.compared
    seen: dict[str, Any] = {
        "metric": metric,
        "mode": "max" if larger_is_better(metric) else "min",
        "time_attr": "local_step",
    }
    grace_steps = sweep.settings.grace_steps
    match settings.scheduler:
        case "asha":
            rungs: dict[str, Any] = {"max_t": max_steps, "reduction_factor": settings.reduction}
            return _SparingASHA(**seen, **rungs, grace_period=grace_steps, stop_last_trials=False)
        case "median":
            # which keeps it from pausing trials
            return _SparingMedian(**seen, grace_period=grace_steps, min_time_slice=math.inf)
        case "pbt":
            return _Population(sweep, num_at_once=num_at_once, **seen)
    return FIFOScheduler()


class _Sparing:
    """Tells a scheduler only what can be compared, and nothing of the baselines.

    It sees what the merged model's metric would be: that of the peers' own models, until there is one. A sweep that is
    resumed compares its trials with each other, and not with those before.
    """

    def on_trial_result(self, controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if _is_baseline(trial) or not result["local_step"]:
            return TrialScheduler.CONTINUE
        return super().on_trial_result(controller, trial, self._seen(result))  # type: ignore[misc]

    def on_trial_complete(self, controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        if _is_baseline(trial):
            super().on_trial_remove(controller, trial)  # type: ignore[misc]
        else:
            super().on_trial_complete(controller, trial, self._seen(result))  # type: ignore[misc]

    def _seen(self, result: dict[str, Any]) -> dict[str, Any]:
        metric: Objective = self._metric  # type: ignore[attr-defined]
        return {**result, metric: _bounded(comparable(metric, result))}


def _bounded(value: float) -> float:
    """In the same order, between -1 and 1: a percentile or a mean that takes in infinity tells nobody apart."""
    return value / (1.0 + abs(value)) if math.isfinite(value) else math.copysign(1.0, value)


class _SparingASHA(_Sparing, ASHAScheduler):
    pass


class _SparingMedian(_Sparing, MedianStoppingRule):
    pass


class _Population(_Sparing, PopulationBasedTraining):
    """Trials that are behind go on from the state of one that is ahead, with its values a little changed.

    Where the cluster does not hold all trials at once they take turns: a trial that has come to the end of its turn is
    saved and its swarm ended, and the one farthest behind is next.
    """

    def __init__(self, sweep: Sweep, *, num_at_once: int, **seen: Any) -> None:
        super().__init__(
            **seen,
            perturbation_interval=sweep.settings.perturb_steps,
            burn_in_period=sweep.settings.grace_steps,
            hyperparam_mutations={key: _mutations(distribution) for key, distribution in sweep.space.items()},
        )
        self._sweep, self._num_at_once = sweep, num_at_once

    def on_trial_add(self, controller: Any, trial: Trial) -> None:
        # It looks for one thing: a searcher, to refuse it, because one that learns would be told of values that have
        # changed since. Ours is a list of points.
        super().on_trial_add(SimpleNamespace(search_alg=None), trial)
        checkpoint = trial.latest_checkpoint_result
        if checkpoint is not None:  # it failed, or the sweep was interrupted: its turn begins where it goes on
            turn = self._trial_state[trial]
            turn.last_perturbation_time = turn.last_train_time = checkpoint.metrics["local_step"]

    def on_trial_result(self, controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        decision = super().on_trial_result(controller, trial, result)
        if decision == TrialScheduler.PAUSE and len(controller.get_live_trials()) <= self._num_at_once:
            return TrialScheduler.CONTINUE  # a trial that waits is only being started anew
        return decision

    def _get_new_config(self, trial: Trial, trial_to_clone: Trial) -> tuple[Point, dict[str, str]]:
        """Tune multiplies beyond the ends of ranges, and to values that do not go together: not here."""
        for _ in range(_TRIES):
            point, operations = super()._get_new_config(trial, trial_to_clone)
            point |= {key: distribution.nearest(point[key]) for key, distribution in self._sweep.space.items()}
            try:
                self._sweep.config(point)
            except ConfigError:
                continue
            return point, operations
        return dict(trial_to_clone.config), {}


def _mutations(distribution: Distribution) -> Any:
    return list(distribution.values) if isinstance(distribution, Choice) else _domain(distribution)


def _is_baseline(trial: Trial) -> bool:
    return bool(trial.config.get(BASELINE, NO_BASELINE) != NO_BASELINE)


def _domain(distribution: Distribution) -> Any:
    if isinstance(distribution, Choice):
        return tune.choice(distribution.values)
    if distribution.kind == "randint":
        return tune.randint(int(distribution.low), int(distribution.high) + 1)
    return getattr(tune, distribution.kind)(distribution.low, distribution.high)
