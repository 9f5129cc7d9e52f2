"""What no sweep can do, whatever its points are. Imports nothing heavy."""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ray_gossip.config import Config, meanings
from ray_gossip.errors import ConfigError
from ray_gossip.tuning.settings import UNDECIDED
from ray_gossip.tuning.space import MOST_POINTS, Choice, Range

if TYPE_CHECKING:
    from ray_gossip.tuning.sweep import Sweep


def check(sweep: Sweep) -> None:
    """Raise ConfigError for what cannot be done, whatever the points are."""
    tune = sweep.settings.tune
    if not sweep.space and not tune.baselines:
        raise ConfigError("space: nothing is swept; add keys such as gossip.group_size: {choice: [2, 4]}")
    if not sweep.space and tune.searcher == "optuna":
        raise ConfigError("tune.searcher=optuna needs keys in space:; add some, or use searcher=random")
    for key, distribution in sweep.space.items():
        if tune.searcher == "grid" and isinstance(distribution, Range):
            raise ConfigError(
                f"space.{key}: tune.searcher=grid cannot go through a {distribution.kind} range; write "
                "{choice: [...]}, or use searcher=random"
            )
        if tune.searcher == "optuna" and isinstance(distribution, Choice) and distribution.each:
            raise ConfigError(f"space.{key}: tune.searcher=optuna goes through no grid; write choice instead")
    if tune.scheduler == "pbt":
        _check_changeable(sweep)
    if tune.scheduler not in UNDECIDED and sweep.base.train.loop is None:
        _check_rungs(sweep)
    _check_size(sweep)
    if tune.searcher == "optuna" and find_spec("optuna") is None:
        raise ConfigError("tune.searcher=optuna needs the package optuna: pip install 'ray_gossip[optuna]'")


def _check_changeable(sweep: Sweep) -> None:
    """Raise ConfigError unless a trial can go on from the state of any other."""
    known = meanings(Config)
    for key in sweep.space:
        holder = key if key in known else key.rpartition(".")[0]  # of arguments of the user's
        if not known[holder].changeable:
            raise ConfigError(
                f"space.{key} cannot change while a run goes on, as tune.scheduler=pbt has it do; give {key} one "
                "value, or use scheduler=asha"
            )
    if sweep.base.engine == "hivemind":
        raise ConfigError(
            "engine=hivemind cannot go on from another trial's state, as tune.scheduler=pbt needs; use engine=gossip, "
            "or tune.baselines=[hivemind]"
        )


def _check_rungs(sweep: Sweep) -> None:
    """Raise ConfigError unless all trials are evaluated at the same local steps, and come to the first comparison."""
    scheduler, settings = f"tune.scheduler={sweep.settings.tune.scheduler}", sweep.settings
    if "train.eval_every" in sweep.space:
        raise ConfigError(
            f"space.train.eval_every: {scheduler} compares trials at the same local steps; give train.eval_every one "
            "value, or set tune.scheduler=none"
        )
    steps = sweep.space.get("train.local_steps")
    fewest = min(steps.checked(), default=0) if steps is not None else settings.train.local_steps
    needed = max(settings.grace_steps, settings.train.eval_every + 1)
    if fewest < needed:
        raise ConfigError(
            f"space.train.local_steps={fewest} is below the {needed} local steps at which {scheduler} first compares; "
            "raise it, or lower tune.grace_steps and train.eval_every"
        )


def _check_size(sweep: Sweep) -> None:
    """Raise ConfigError if there are more points than could ever be tried."""
    turns = [len(each.values) for each in sweep.space.values() if isinstance(each, Choice) and sweep.goes_through(each)]
    num = math.prod(turns) * (sweep.settings.tune.num_samples if len(turns) < len(sweep.space) else 1)
    if num > MOST_POINTS:
        raise ConfigError(
            f"space: its grids have {num:,} points, above {MOST_POINTS:,}; lower tune.num_samples, or write "
            "choice instead of grid, with tune.searcher=random"
        )
    if sweep.settings.tune.searcher == "optuna":
        sizes = [len(each.checked()) for key, each in sweep.space.items() if key.startswith("swarm.")]
        if math.prod(sizes) > MOST_POINTS:
            raise ConfigError(f"space: its swarm keys have {math.prod(sizes):,} combinations; sweep fewer of them")
