"""The `gossip:` section."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from ray_gossip.config.meaning import Meaning
from ray_gossip.config.section import Count, Peers, Positive, Seconds, Section

_OPTION = Meaning(shared=True, changeable=True, option=True)
_OWN = Meaning(changeable=True)  # it changes a peer's own training, not who meets whom about what

OUTVOTED = 3  # peers of whom one can be outvoted: in a group of fewer, nothing is robust
_ROBUST_GROUP = {"none": 1, "clip": OUTVOTED, "trimmed": OUTVOTED + 1}  # of which one may be missing


class GossipConfig(Section):
    """How peers average."""

    meaning: ClassVar[Meaning] = Meaning(shared=True, changeable=True)

    group_size: Annotated[Peers, _OPTION] = 16
    """Peers that average together in a round, 1 or more (1: never average). 4 or 8 serves most swarms; a swarm
    smaller than this averages as one group."""
    min_group_size: Annotated[int, Meaning(changeable=True, option=True)] = Field(2, ge=2, le=10_000)
    """The smallest group that goes on when groupmates are missing after matchmaking_s, 2 or more."""
    alpha: Annotated[float, Meaning(changeable=True, option=True)] = Field(1.0, gt=0, le=1)
    """How far a peer moves to its group's mean, in (0, 1]. Below 1 only for lossy compression or to keep spread on
    purpose: it never helps plain averaging."""
    steps: Annotated[Positive | None, _OPTION] = 20
    """H: local steps between two rounds, 1 or more. Raise it when rounds take longer than H steps; lower it when the
    merged model lags behind."""
    seconds: Annotated[Seconds | None, _OPTION] = None
    """Seconds between two rounds, instead of `steps`: for swarms whose network decides how often they may meet. With
    either, fast and slow peers do different numbers of steps, and nobody is throttled."""
    schedule: Annotated[Literal["grid", "random", "ring", "all", "local", "hivemind"], _OPTION] = "grid"
    """Who meets whom. grid: a mixed-radix hypercube, exact after log_M N rounds when full. random: seeded random
    groups, best under churn. ring: neighbours, for networks where only those are near. all: one group, i.e. local SGD
    with an all-reduce. local: within a node, across nodes every cross_every-th round. hivemind: hivemind's own
    matchmaking, for comparison; with groups smaller than the swarm the same peers keep meeting."""
    cross_every: Positive = 4
    """schedule=local: each n-th round meets across nodes, 1 or more."""
    weight_by_samples: bool = False
    """Weigh each peer by the samples since its last round. For peers of different speed on a clock in seconds. It
    moves the swarm's mean towards the fast peers, which equal weights never do. Exact rounds weigh all alike."""
    robust: Literal["none", "clip", "trimmed"] = "none"
    """How a group averages when one of its peers may be wrong: a broken GPU, another build, a liar. none: it moves the
    mean wherever it likes. clip: by twice the usual distance from the median, divided by the group's size; without such
    a peer the mean is the plain one. trimmed: of each value the largest and the smallest quarter are left out. Needs
    groups of 3 (trimmed: 4), better 5, for one may be missing; and peers whose updates are about alike: not with label
    skew, nor with a few fast ones."""
    average_momentum: bool = False
    """Average SGD's momentum with the parameters, for twice the bytes. For short intervals and skewed shards."""
    compression: Literal["none", "fp16", "int8"] = "none"
    """How parameters travel. fp16: half the bytes, harmless up to 65504. int8: a quarter; 8 bits on the difference from
    an anchor that the group shares (the start, or the last exact round: set exact_every), never on parameters
    themselves."""
    fragments: Annotated[int, Field(ge=1, le=1000)] = 1
    """The state travels in so many pieces, one each round, and each piece meets the same groups in turn. For links on
    which a round of the whole state takes longer than the interval: n pieces take an n-th of it, and mix n times more
    slowly. Exact and final rounds send all."""
    warmup_rounds: Count = 0
    """Rounds over which the interval grows linearly to `steps` or `seconds`. For large learning rates, when peers
    drift apart early."""
    exact_every: Count = 0
    """Each n-th round reaches the exact mean of the swarm: log_M N scheduled rounds back to back; 0: never.
    For compression=int8, and against slow drift in swarms that are no full grid. It takes no outer step."""
    consensus_target: float | None = Field(None, ge=1e-9, le=1e9)
    """Consensus control: the interval between two rounds becomes up to eight times as long while the consensus distance
    of the swarm, as a fraction of the parameter norm, is far below this target, and short again above it. Set `steps`
    to the shortest interval then. To save bytes late in training; 0.01 to 0.05 are sensible."""
    outer: Literal["none", "nesterov", "heavy_ball"] = "none"
    """What a peer does with its group's mean. none: moves to it by alpha. nesterov: an outer SGD step with Nesterov
    momentum towards it (DiLoCo; in small groups NoLoCo), for 50 or more local steps between rounds. heavy_ball: the
    same with plain momentum; diverges in pairs, and in large swarms stands at the edge even in groups of four."""
    outer_lr: float = Field(0.7, ge=1e-9, le=1e3)
    """Learning rate of the outer step."""
    outer_momentum: float = Field(0.5, ge=0, lt=1)
    """Momentum of the outer step. 0.9 is usual with one group of all; in small groups 0.5 mixes better."""
    overlap: Annotated[bool, _OWN] = True
    """Local steps go on while a round runs; its delta is applied when it ends. false: they wait.
    With engine=hivemind they always wait."""
    matchmaking_s: Annotated[Seconds | None, _OWN] = None
    """Longest that a group waits for a missing groupmate before the rest go on, in seconds; unset: as long as the
    interval between two rounds, which costs nothing, and 5 s with overlap=false. Dead and busy ones are not waited for.
    There is no need to set it."""
    allreduce_s: Annotated[Seconds, _OWN] = 60.0
    """Longest that an all-reduce may take, in seconds; then the round has failed. The real deadline is learned from
    observed rounds and is mostly far below."""

    @model_validator(mode="before")
    @classmethod
    def _one_clock(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("seconds") is not None:
            if values.get("steps") is not None:
                raise ValueError("steps and seconds are both set; a swarm has one clock, keep one of them")
            values = {**values, "steps": None}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> GossipConfig:
        if self.steps is None and self.seconds is None:
            raise ValueError("neither steps nor seconds is set; set one of them")
        if self.group_size > 1 and self.min_group_size > self.group_size:
            raise ValueError(
                f"min_group_size={self.min_group_size} is above group_size={self.group_size}, so no group could "
                "ever start; lower min_group_size"
            )
        if self.group_size < (least := _ROBUST_GROUP[self.robust]):
            raise ValueError(
                f"group_size={self.group_size} is too small for robust={self.robust}: one of fewer than {least} peers "
                "cannot be outvoted; raise group_size"
            )
        if self.robust != "none" and self.weight_by_samples:
            raise ValueError(f"weight_by_samples has no effect with robust={self.robust}; leave one of them out")
        if self.outer != "none" and self.alpha != 1.0:
            raise ValueError(f"alpha={self.alpha:g} has no effect with outer={self.outer}; leave one of them out")
        return self
