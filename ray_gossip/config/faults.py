"""The `faults:` section."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ray_gossip.config.section import Count, Seconds, Section

FaultKind = Literal["kill", "stop", "slow", "sidecar", "p2pd", "drop"]
LASTING: tuple[FaultKind, ...] = ("slow", "drop")  # what passes by itself
NETWORK: tuple[FaultKind, ...] = ("sidecar", "p2pd", "drop")  # what hits a peer's network side alone


class PlannedFault(Section):
    """One fault that is to happen."""

    kind: FaultKind
    """What happens, as in faults.kinds."""
    peer: Count | None = None
    """The peer that is hit; unset: any that takes part, by chance. One that is away is hit when it is back."""
    at_s: Seconds | None = None
    """Seconds from when all peers began to train, or went on after --resume."""
    at_round: Count | None = None
    """The round whose end the peer has reported, instead of at_s."""
    for_s: Seconds | None = None
    """How long it lasts, where it does not last by itself; unset: faults.for_s."""

    @model_validator(mode="before")
    @classmethod
    def _at_one_moment(cls, values: Any) -> Any:
        if isinstance(values, dict) and (values.get("at_s") is None) == (values.get("at_round") is None):
            raise ValueError("a fault happens at_s or at_round: give one of them")
        if isinstance(values, dict) and values.get("for_s") is not None and values.get("kind") not in LASTING:
            raise ValueError(f"for_s is for {' and '.join(LASTING)}, which pass by themselves; leave it out")
        return values


class FaultsConfig(Section):
    """Faults on purpose, to see that a run outlives them; none unless they are asked for. The run ends with a report of
    how it did."""

    plan: tuple[PlannedFault, ...] = ()
    """Faults at given moments, such as [{kind: kill, peer: 2, at_s: 30}, {kind: drop, at_round: 10, for_s: 5}]."""
    per_peer_hour: float = Field(0.0, ge=0, le=3600)
    """Faults of each peer in an hour, at random: what and when follow from the seed."""
    kinds: Annotated[tuple[FaultKind, ...], Field(min_length=1)] = ("kill", "stop", "sidecar", "p2pd", "drop")
    """What may happen at random. kill: kill -9 of the peer's process. stop: SIGSTOP of it, for good. sidecar, p2pd:
    kill -9 of its network process, or of the libp2p daemon below that. drop: nothing comes or goes on the network.
    slow: a third of its speed."""
    for_s: Seconds = 10.0
    """How long drop and slow last."""

    @property
    def are_asked_for(self) -> bool:
        return bool(self.plan or self.per_peer_hour)
