"""A loop's model as the engine sees it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.optim import Optimizer

from ray_gossip.training.averaged import ModelState


class LoopState:
    """What the engine averages."""

    def __init__(self, state: ModelState, optimizer: Optimizer | None = None) -> None:
        self._state, self.optimizer = state, optimizer
        self.samples = 0

    def read_state(self, out: Tensor) -> None:
        self._state.read(out)

    def add_to_state(self, delta: Tensor) -> None:
        self._state.add(delta)

    def write_state(self, flat: Tensor) -> None:
        self._state.write(flat)

    def rest(self) -> dict[str, Tensor]:
        return self._state.rest()

    def take_rest(self, rest: Mapping[str, Tensor]) -> list[str]:
        return self._state.take_rest(rest)

    def drifting(self) -> list[str]:
        return self._state.drifting()

    def digest(self) -> str:
        return self._state.digest()
