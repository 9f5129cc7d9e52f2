"""The `tune:` section of a sweep's config. Imports nothing heavy."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ray_gossip.config import Config, Section
from ray_gossip.config.section import Count, Positive

Objective = str  # one of these, or max:NAME or min:NAME of what is reported
OBJECTIVES: tuple[Objective, ...] = (
    "merged_accuracy",
    "merged_loss",
    "seconds_to_target",
    "bytes_to_target",
    "bytes_sent",
    "train_s",
    "peer_accuracy",
)
Baseline = Literal["all", "no_averaging", "hivemind", "one_peer"]

OF_ACCURACY = frozenset[Objective](("merged_accuracy", "peer_accuracy", "seconds_to_target", "bytes_to_target"))
OF_EVALUATION = OF_ACCURACY | {"merged_loss"}
_DIRECTIONS = ("max", "min")
OF_TUNE = frozenset(  # names of a result by which Tune itself counts and steers
    (
        *("config", "date", "done", "experiment_tag", "hostname", "iterations_since_restore", "node_ip", "pid"),
        *("should_checkpoint", "time_since_restore", "time_this_iter_s", "time_total_s", "timestamp"),
        *("training_iteration", "trial_id"),
    )
)
UNDECIDED = ("none", "auto")  # schedulers that stop nobody, or none that is chosen yet


def is_reported(objective: Objective) -> bool:
    """It is a number of the user's own, at its name."""
    return ":" in objective


def metric_of(objective: Objective) -> str:
    """The name of its number in a trial's results."""
    return objective.partition(":")[2] if is_reported(objective) else objective


def larger_is_better(objective: Objective) -> bool:
    return objective in ("merged_accuracy", "peer_accuracy") or objective.startswith("max:")


class TuneConfig(Section):
    """How the space is searched."""

    searcher: Literal["random", "grid", "optuna"] = "random"
    """Which points of the space are tried. random: `num_samples` draws, none of them twice. grid: all combinations, of
    spaces without ranges. optuna: each point learns from the trials before it; needs the package optuna, and pays off
    from about 20 trials on."""
    num_samples: int = Field(10, ge=1, le=2000)
    """Trials of searcher=random and optuna, 1 or more. Keys with `grid` multiply it: each draw is tried with all of
    their combinations. scheduler=pbt: the population; 4 at least, so that there are quarters."""
    scheduler: Literal["auto", "asha", "median", "pbt", "none"] = "auto"
    """What becomes of trials that are behind, by their peers' accuracy. auto: asha for three times `reduction` trials
    or more that are long enough to be compared, else none. asha: at `grace_steps`, and each time
    `reduction` times later, a trial that is not in the best 1/`reduction` so far is stopped. median: one below the
    median of the others is stopped. pbt: population based training, every `perturb_steps` a trial in the worst
    quarter goes on from the state of one in the best quarter, with its values changed a little; for values that should
    change while a run goes on, such as the learning rate. none: nothing; for few or short trials."""
    grace_steps: Positive | None = None
    """Local steps that every trial may do before it can be stopped, or take over another's state; unset: an eighth of
    train.local_steps, but not less than train.eval_every. Raise it when good settings start slowly."""
    perturb_steps: Positive | None = None
    """scheduler=pbt: local steps between two looks at a trial; unset: as `grace_steps`. Each time that a trial takes
    over another's state, its swarm is started anew, which takes seconds: lower it only while a look is far rarer."""
    reduction: int = Field(3, ge=2, le=1000)
    """scheduler=asha: one in so many trials goes on at each stage, 2 or more."""
    objectives: tuple[Objective, ...] = Field(("merged_accuracy",), min_length=1)
    """What is best, one or several; of several, the report shows the Pareto front, and calls best what is best by the
    first. merged_accuracy, merged_loss: of the merged model. peer_accuracy: mean over the peers' own models.
    seconds_to_target, bytes_to_target: until the peers' mean accuracy is `target_accuracy`. bytes_sent, train_s: all
    bytes, all seconds of training. max:NAME, min:NAME: what is reported as NAME, by peer.report in a loop of your own
    or by train.metrics, mean over the peers, the larger or the smaller the better; a loop has none of the first
    five."""
    target_accuracy: float | None = Field(None, gt=0, le=1)
    """Accuracy that seconds_to_target and bytes_to_target wait for, in (0, 1]."""
    baselines: tuple[Baseline, ...] = ()
    """Trials beside those of the space, with the values of the config; they are never stopped early. all: one group of
    all, i.e. local SGD with an all-reduce. no_averaging: every peer for itself until the end. hivemind:
    engine=hivemind. one_peer: one peer alone, on all data."""
    max_concurrent: Positive | None = None
    """Trials that run at once; unset: as many as the cluster holds."""
    time_budget_s: float | None = Field(None, ge=0.001, le=1e8)
    """Seconds after which no trial goes on; unset: no limit."""
    max_failures: Count = 1
    """How often a trial is started again when its driver died or raised. The loss of peers is no failure of a trial,
    unless no peer is left."""

    @field_validator("objectives", "baselines", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("objectives")
    @classmethod
    def _known(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            direction, _, name = value.partition(":")
            if name in OF_TUNE:
                raise ValueError(f"{value}: results of Tune have a {name} of their own; report it by another name")
            if value not in OBJECTIVES and not (direction in _DIRECTIONS and name.strip()):
                close = get_close_matches(value, OBJECTIVES, n=1)
                meant = f"; did you mean {close[0]}?" if close else ""
                raise ValueError(
                    f"{value} is none of {', '.join(OBJECTIVES)}; of what is reported, max:NAME or min:NAME{meant}"
                )
        return values

    @field_validator("objectives", "baselines")
    @classmethod
    def _once(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            if values.count(value) > 1:
                raise ValueError(f"{value} is there twice; leave one out")
        return values

    @model_validator(mode="after")
    def _consistent(self) -> TuneConfig:
        wanting = [objective for objective in self.objectives if objective.endswith("_to_target")]
        if wanting and self.target_accuracy is None:
            raise ValueError(f"objectives={wanting[0]} needs tune.target_accuracy; set it, such as 0.9")
        self._check_scheduler()
        if self.searcher == "optuna" and self.scheduler == "pbt":
            raise ValueError(
                "searcher=optuna learns what values lead to, but scheduler=pbt changes them on the way; use "
                "searcher=random"
            )
        return self

    def _check_scheduler(self) -> None:
        """Raise ValueError for keys that this scheduler does not use."""
        used_by = {
            "perturb_steps": ("pbt",),
            "reduction": ("asha", "auto"),
            "grace_steps": ("asha", "median", "pbt", "auto"),
        }
        for key, schedulers in used_by.items():
            is_set = getattr(self, key) != TuneConfig.model_fields[key].default
            if is_set and self.scheduler not in schedulers:
                raise ValueError(f"{key} is for scheduler={schedulers[0]}, not {self.scheduler}; leave it out")


class SweepConfig(Config):
    """One run, and how to vary it."""

    tune: TuneConfig = TuneConfig()

    @model_validator(mode="after")
    def _compares(self) -> SweepConfig:
        is_compared = self.train.loop is None and self.tune.scheduler not in UNDECIDED
        if is_compared and self.train.eval_every >= self.train.local_steps:
            raise ValueError(
                f"tune.scheduler={self.tune.scheduler} compares evaluations on the way, but "
                f"train.eval_every={self.train.eval_every} is not below train.local_steps={self.train.local_steps}; "
                "lower train.eval_every, or set tune.scheduler=none"
            )
        return self

    @model_validator(mode="after")
    def _measures(self) -> SweepConfig:
        if self.train.loop is not None:
            return self._reports()
        for objective in filter(is_reported, self.tune.objectives):
            if metric_of(objective) not in self.train.metrics:
                raise ValueError(
                    f"tune.objectives={objective}: there is no {metric_of(objective)} in train.metrics; add it, or "
                    "name an objective such as merged_accuracy"
                )
        wanting = [objective for objective in self.tune.objectives if objective in OF_ACCURACY]
        if wanting and self.train.loss == "mse":
            raise ValueError(
                f"tune.objectives={wanting[0]} needs an accuracy, and train.loss=mse has none; set "
                "tune.objectives=merged_loss"
            )
        return self

    def _reports(self) -> SweepConfig:
        """Raise ValueError for what needs an evaluation, or a number of local steps, that only a loop knows."""
        scheduler, objectives = self.tune.scheduler, self.tune.objectives
        wanting = [objective for objective in objectives if objective in OF_EVALUATION]
        if wanting:
            raise ValueError(
                f"tune.objectives={wanting[0]} is of models that are evaluated for you, and train.loop evaluates by "
                "itself; name what it reports, such as tune.objectives=max:accuracy"
            )
        if scheduler == "pbt":
            raise ValueError("tune.scheduler=pbt: a loop of your own has no snapshot; use asha, median or none")
        if scheduler not in UNDECIDED and not any(map(is_reported, objectives)):
            raise ValueError(
                f"tune.scheduler={scheduler} compares what train.loop reports; add it to tune.objectives, such as "
                "max:accuracy, or set tune.scheduler=none"
            )
        if scheduler not in UNDECIDED and self.tune.grace_steps is None:
            raise ValueError(
                f"tune.scheduler={scheduler} cannot know how long train.loop is; set tune.grace_steps, or "
                "tune.scheduler=none"
            )
        return self

    @model_validator(mode="after")
    def _can_stop(self) -> SweepConfig:
        for key in ("grace_steps", "perturb_steps"):
            steps: int | None = getattr(self.tune, key)
            if self.train.loop is None and steps is not None and steps > self.train.local_steps:
                raise ValueError(
                    f"tune.{key}={steps} is above train.local_steps={self.train.local_steps}, so no trial could ever "
                    "be stopped or changed; lower it, or set tune.scheduler=none"
                )
        return self

    @property
    def compared(self) -> Objective:
        """What schedulers compare trials by."""
        if self.train.loop is not None:
            return next(filter(is_reported, self.tune.objectives), self.tune.objectives[0])
        has_none = self.train.loss == "mse"
        return "merged_loss" if has_none or self.tune.objectives[0] == "merged_loss" else "merged_accuracy"

    @property
    def grace_steps(self) -> int:
        """Local steps before a trial can be stopped, or changed."""
        return self.tune.grace_steps or max(self.train.local_steps // 8, self.train.eval_every)

    @property
    def perturb_steps(self) -> int:
        """Local steps between two looks at a trial of a population."""
        return self.tune.perturb_steps or self.grace_steps
