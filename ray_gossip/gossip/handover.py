"""What a peer gives to a newcomer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Handover:
    """The model of a peer at one moment."""

    local_step: int
    state: Tensor  # [state_size] float32
    rest: Mapping[str, Tensor] = field(default_factory=dict)  # of the model, which no round touches
    memory: Mapping[str, Tensor] = field(default_factory=dict)  # of the optimizer, see `training.memory`
    layout: str = ""  # of the state
    is_current: bool = True  # False: its trainer stands still, and this is what it was at the last round


class Damaged(Exception):
    """What came is not what the donor sent."""


class StandsStill(Exception):
    """This donor has an old model only; another may have a current one."""
