"""The trials of a sweep as they ended, read from what Tune left in the sweep's folder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ray.tune import ExperimentAnalysis
from ray.tune.experiment import Trial

from ray_gossip.tuning.metrics import Metrics, comparable, shown
from ray_gossip.tuning.progress import cause_of
from ray_gossip.tuning.settings import Objective, larger_is_better, metric_of
from ray_gossip.tuning.sweep import BASELINE, NO_BASELINE, Point

End = Literal["finished", "stopped_early", "failed", "unfinished"]
ENDS: tuple[End, ...] = ("finished", "stopped_early", "failed", "unfinished")


@dataclass(frozen=True)
class Outcome:
    """One trial."""

    name: str
    point: Point
    end: End
    metrics: Metrics  # the last; empty when it never reported
    history: list[Metrics]  # all that led to them, in their order
    cause: str  # why it failed; else empty
    num_failures: int

    @property
    def baseline(self) -> str | None:
        name = self.point.get(BASELINE, NO_BASELINE)
        return None if name == NO_BASELINE else str(name)


def read_outcomes(place: str, objectives: Sequence[Objective]) -> list[Outcome]:
    """All trials that were ever started, in the order of their names; none, if Tune has not written anything yet."""
    try:
        analysis = ExperimentAnalysis(place)
    except ValueError:
        return []
    histories, names = analysis.trial_dataframes, shown(objectives)
    return sorted(
        (_outcome(trial, histories.get(trial.trial_id), names) for trial in analysis.trials), key=lambda o: o.name
    )


def rank(outcomes: Sequence[Outcome], objective: Objective) -> list[Outcome]:
    """Best first. A trial that finished comes before one that was stopped early, whose numbers are of an earlier step;
    of those that finished, one that did not agree comes last: it has no merged model, and its peers' own do not stand
    for it."""
    order: dict[End, int] = {"finished": 0, "stopped_early": 1, "unfinished": 1, "failed": 2}

    def key(each: Outcome) -> tuple[int, bool, float]:
        value = each.metrics.get(metric_of(objective))
        is_without = each.end == "finished" and (value is None or not math.isfinite(value))
        return order[each.end], is_without, _loss(each, objective)

    return sorted(outcomes, key=key)


def pareto(outcomes: Sequence[Outcome], objectives: Sequence[Objective]) -> list[Outcome]:
    """The finished trials that no other beats in one objective without losing in another."""
    finished = [outcome for outcome in outcomes if outcome.end == "finished"]
    at = [tuple(_loss(outcome, objective) for objective in objectives) for outcome in finished]

    def is_beaten(mine: tuple[float, ...]) -> bool:
        return any(other != mine and all(o <= m for o, m in zip(other, mine, strict=True)) for other in at)

    return [outcome for outcome, mine in zip(finished, at, strict=True) if not is_beaten(mine)]


def _loss(outcome: Outcome, objective: Objective) -> float:
    value = comparable(objective, outcome.metrics)
    return -value if larger_is_better(objective) else value


def _outcome(trial: Trial, results: Any, names: Sequence[str]) -> Outcome:
    history: list[Metrics] = []
    for row in results.to_dict("records") if results is not None else []:
        if row.get("iterations_since_restore") == 1:  # it was started again, from a checkpoint or from the beginning
            history = [each for each in history if each["local_step"] < row["local_step"]]
        history.append({name: row[name] for name in names if name in row})
    return Outcome(
        name=str(trial),
        point=dict(trial.config),
        end=_end(trial),
        metrics=history[-1] if history else {},
        history=history,
        cause=cause_of(trial) if trial.status == Trial.ERROR else "",
        num_failures=trial.num_failures,
    )


def _end(trial: Trial) -> End:
    if trial.status == Trial.ERROR:
        return "failed"
    # when the time is over, a trial that waits is "terminated" too
    if trial.status != Trial.TERMINATED or not trial.last_result:
        return "unfinished"
    return "finished" if trial.last_result.get("finished") else "stopped_early"
