"""How much each key of the space matters for the first objective, by Optuna, if it is there."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from ray_gossip.tuning.metrics import comparable
from ray_gossip.tuning.outcome import Outcome
from ray_gossip.tuning.settings import larger_is_better
from ray_gossip.tuning.space import Choice, Distribution
from ray_gossip.tuning.sweep import Sweep

_FEWEST = 6  # trials, below which shares are noise


def importance(sweep: Sweep, outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Each key's share in the differences between the trials of the space (fANOVA), largest first; empty when there are
    too few trials, or no differences, or no Optuna."""
    objective = sweep.settings.tune.objectives[0]
    varied = [outcome for outcome in outcomes if outcome.end in ("finished", "stopped_early") and not outcome.baseline]
    told = [(outcome.point, comparable(objective, outcome.metrics)) for outcome in varied]
    told = [(point, value) for point, value in told if math.isfinite(value)]
    if len(told) < _FEWEST or len({value for _, value in told}) < 2 or find_spec("optuna") is None:
        return {}
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions = {key: _optuna(distribution) for key, distribution in sweep.space.items()}
    study = optuna.create_study(direction="maximize" if larger_is_better(objective) else "minimize")
    for point, value in told:
        params = {key: _plain(point[key]) for key in distributions}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=value))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shares: dict[str, float] = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return shares


def _optuna(distribution: Distribution) -> Any:
    from optuna import distributions

    if isinstance(distribution, Choice):
        return distributions.CategoricalDistribution([_plain(value) for value in distribution.values])
    if distribution.kind == "randint":
        return distributions.IntDistribution(int(distribution.low), int(distribution.high))
    return distributions.FloatDistribution(distribution.low, distribution.high, log=distribution.kind == "loguniform")


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
