"""What a peer needs from an engine, and an engine from a trainer. Neither knows more of the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ray_gossip.records import Outcome, Record, RoundReport
from ray_gossip.training.averaged import ModelState


@dataclass(frozen=True, kw_only=True)
class StateShape:
    """What peers must have in common to average their states."""

    size: int  # elements
    num_parameters: int  # the first so many are parameters that train
    layout: str = ""  # a digest of names, shapes and types

    @classmethod
    def of(cls, averaged: ModelState) -> StateShape:
        """The shape of a model's averaged part."""
        return cls(size=averaged.size, num_parameters=averaged.num_parameters, layout=averaged.layout)


class TrainingState(Protocol):
    """A model: the part that is averaged, seen as one flat float32 vector [size], and the rest."""

    optimizer: Any  # None: it keeps that to itself

    @property
    def samples(self) -> int:
        """Seen so far in training."""

    def read_state(self, out: torch.Tensor) -> None:
        """Copy the state into `out`, float32 [size] in host memory."""

    def add_to_state(self, delta: torch.Tensor) -> None:
        """Add `delta`, float32 [size] in host memory, in place."""

    def write_state(self, flat: torch.Tensor) -> None:
        """Replace the state by `flat`, float32 [size] in host memory."""

    def rest(self) -> dict[str, torch.Tensor]:
        """Copies in host memory of what else belongs to the model. From any thread."""

    def take_rest(self, rest: Mapping[str, torch.Tensor]) -> list[str]:
        """Take over the rest of another peer's model; returns the frozen parameters that were others here."""

    def drifting(self) -> list[str]:
        """Names of what training changes though it is not averaged, and is no constant therefore."""

    def digest(self) -> str:
        """Peers with the same digest have begun with the same model."""


@dataclass(frozen=True, kw_only=True)
class FinalResult:
    """How the final rounds ended, and the reports of rounds that were still in flight before."""

    reports: list[RoundReport]
    outcome: Outcome
    cause: str
    agreed: bool  # all that were there hold the same parameters now
    silent: tuple[str, ...]  # names of peers that vanished lately without a goodbye: they are not in it
    bytes_sent: int
    sketch: tuple[float, ...]


class Engine(Protocol):
    """Averaging with other peers."""

    def attach(self, state: TrainingState) -> None:
        """Take the state to average, after the model is on its device. With engine=hivemind, on the main thread."""

    notices: list[str]  # sentences for a person; once passed on, they are taken out

    @property
    def members(self) -> tuple[int, ...] | None:
        """Peer indices to which samples are dealt as of late; None: not known."""

    def join(self, *, founders: int, local_step: int = 0, has_taken_over: bool = False) -> object:
        """Enter a swarm that begins, at this local step; wait for the other founders, with a deadline."""

    def join_running(self, *, has_model: bool = False) -> int:
        """Enter a swarm that runs, with its state, unless this peer has that; returns the others' local step."""

    def after_step(self, local_step: int) -> list[RoundReport]:
        """To be called after every local step; returns the rounds that have ended."""

    def settle(self, local_step: int, *, within_s: float) -> list[RoundReport]:
        """The end of the round in flight, if it ends so soon."""

    def restore(self, local_step: int, why: str) -> list[RoundReport]:
        """Go on with a neighbour's model, because this peer's training has diverged."""

    def finish(self, local_step: int) -> FinalResult:
        """Mix to agreement with all peers, with a deadline."""

    def tell_driver(self, records: Sequence[Record], *, wait_s: float = 0.0) -> None:
        """Pass on the records of a peer that has joined by itself, as far as a driver listens."""

    def guest_records(self) -> list[Record]:
        """What such peers have told this one for the driver."""

    def shutdown(self) -> None:
        """Leave the swarm and end the engine's processes."""
