"""The whole config of a run: its sections, and what must hold between them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from ray_gossip.config.checkpoint import CheckpointConfig
from ray_gossip.config.data import DataConfig
from ray_gossip.config.faults import NETWORK, FaultsConfig
from ray_gossip.config.gossip import OUTVOTED, GossipConfig
from ray_gossip.config.meaning import Meaning
from ray_gossip.config.mistakes import explain
from ray_gossip.config.model import ModelConfig
from ray_gossip.config.optimizer import OptimizerConfig
from ray_gossip.config.section import Section
from ray_gossip.config.swarm import SwarmConfig
from ray_gossip.config.train import TrainConfig
from ray_gossip.errors import ConfigError

_REPLACEMENTS = 3  # of one peer in a row, where nothing else is asked for


class Config(Section):
    """One run."""

    engine: Annotated[Literal["gossip", "hivemind"], Meaning(shared=True)] = "gossip"
    """gossip: scheduled groups, overlap, honest outcomes. hivemind: `hivemind.Optimizer(use_local_updates=True)` as
    shipped, for comparison and for the open internet."""
    seed: Annotated[int, Meaning(shared=True)] = Field(0, ge=0, le=2**32 - 1)
    """Seeds the model, the shards, the batches, the schedule, and what each peer draws in training, such as dropout."""
    swarm: SwarmConfig = SwarmConfig()
    gossip: GossipConfig = GossipConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    faults: FaultsConfig = FaultsConfig()

    @property
    def max_replacements(self) -> int:
        """Of one peer in a row: what `swarm.max_replacements` is where it is unset."""
        asked = self.swarm.max_replacements
        if asked is None:
            return 0 if self.engine == "hivemind" or self.train.loop is not None else _REPLACEMENTS
        return asked

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        gossip, optimizer = self.gossip, self.optimizer
        if gossip.average_momentum and (optimizer.name != "SGD" or optimizer.momentum == 0):
            other = optimizer.name or optimizer.factory
            raise ValueError(
                f"gossip.average_momentum needs optimizer.name=SGD with momentum, not {other} with "
                f"momentum={optimizer.momentum:g}; switch it off"
            )
        if gossip.robust != "none" and (self.engine == "hivemind" or self.swarm.num_peers < OUTVOTED):
            needs = f"swarm.num_peers={OUTVOTED} or more" if self.engine == "gossip" else "engine=gossip"
            raise ValueError(f"gossip.robust={gossip.robust} needs {needs}; set it, or gossip.robust=none")
        if self.data.num_train is not None and self.swarm.num_peers > self.data.num_train:
            raise ValueError(
                f"swarm.num_peers={self.swarm.num_peers} is above the {self.data.num_train} training samples of "
                f"data.name={self.data.name}, so that some peers would get none; lower it"
            )
        self._check_faults()
        if self.swarm.least < self.swarm.num_peers and not self.max_replacements:
            who = "engine=gossip" if self.engine == "hivemind" else "swarm.max_replacements"
            raise ValueError(f"swarm.min_peers needs {who}: peers come in while the swarm runs")
        if self.engine == "hivemind" and self.swarm.max_replacements:
            raise ValueError("swarm.max_replacements needs engine=gossip: nobody joins engine=hivemind while it runs")
        if self.engine == "hivemind" and gossip.seconds is not None:
            raise ValueError("gossip.seconds is unknown to engine=hivemind, which counts samples; set gossip.steps")
        if self.train.loop is not None and (self.engine == "hivemind" or gossip.average_momentum):
            key = "gossip.average_momentum" if self.engine == "gossip" else "engine=hivemind"
            raise ValueError(f"{key} needs the optimizer, which train.loop keeps to itself; leave it out")
        if self.engine == "hivemind" and self.train.precision == "fp16":
            raise ValueError("train.precision=fp16 needs a scaler that engine=hivemind does not take; use bf16 or fp32")
        return self

    def _check_faults(self) -> None:
        faults, num_peers = self.faults, self.swarm.num_peers
        for planned in faults.plan:
            if planned.peer is not None and planned.peer >= num_peers:
                raise ValueError(
                    f"faults.plan hits peer {planned.peer}, but swarm.num_peers={num_peers}: 0 is the first"
                )
        kinds = [*(planned.kind for planned in faults.plan), *(faults.kinds if faults.per_peer_hour else ())]
        if self.engine == "hivemind" and (beyond := [kind for kind in kinds if kind in NETWORK]):
            raise ValueError(
                f"faults of kind {beyond[0]} need engine=gossip, whose network side is a process of its own"
            )


AnyConfig = TypeVar("AnyConfig", bound=Config)


def parse(values: Any) -> Config:
    """Build a Config from plain nested dicts. Raises ConfigError."""
    return parse_as(Config, values)


def parse_as(schema: type[AnyConfig], values: Any) -> AnyConfig:
    """The same for a schema that adds sections to it."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, schema)) from None
