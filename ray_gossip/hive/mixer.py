"""What a round sends, and what it makes of the group's mean. No network here."""

from __future__ import annotations

import numpy as np
import torch
from hivemind.compression import (
    CompressionBase,
    CompressionInfo,
    Float16Compression,
    NoCompression,
    Uniform8BitQuantization,
    deserialize_torch_tensor,
)
from numpy.typing import NDArray

from ray_gossip.config import GossipConfig
from ray_gossip.errors import ConfigError
from ray_gossip.mixing import OuterMomentum

NO_ANCHOR = -1
_START = 0  # id of the anchor that founders share: the parameters with which they start
_CODECS: dict[str, CompressionBase] = {
    "none": NoCompression(),
    "fp16": Float16Compression(),
    "int8": Uniform8BitQuantization(),
}
_TOLERANCE = {"none": 0.0, "fp16": 2e-3, "int8": 0.1}  # largest error of a codec on standard normal values, median


class Mixer:
    """Codec, anchor, outer momentum: the state that averaging keeps from round to round, one per peer."""

    def __init__(self, gossip: GossipConfig) -> None:
        self._gossip = gossip
        self._anchor: torch.Tensor | None = None
        self._outer: OuterMomentum | None = None
        self.anchor_id = NO_ANCHOR

    def start(self, state: torch.Tensor, *, is_founder: bool) -> None:
        """Remember where the swarm starts. Founders start from the same parameters, so these are a shared anchor."""
        if self._gossip.outer != "none":
            self._outer = OuterMomentum(
                state.numpy(),
                lr=self._gossip.outer_lr,
                momentum=self._gossip.outer_momentum,
                nesterov=self._gossip.outer == "nesterov",
            )
        if is_founder:
            self.set_anchor(state, _START)

    def set_anchor(self, state: torch.Tensor, anchor_id: int) -> None:
        """From now on differences are taken from this state, which the whole swarm has just agreed on."""
        if self._gossip.compression == "int8":
            self._anchor, self.anchor_id = state.clone(), anchor_id

    def outgoing(
        self, state: torch.Tensor, *, exact: bool, anchors: frozenset[int]
    ) -> tuple[torch.Tensor, CompressionBase]:
        """What to put into the all-reduce, and how it travels.

        Args:
            exact: this round becomes the next anchor, so nothing may be lost.
            anchors: ids of the groupmates' anchors. Without a common one, 8 bits would be on raw parameters: 16 then.
        """
        if exact:
            return state, _CODECS["none"]
        if self._gossip.compression != "int8":
            return state, _CODECS[self._gossip.compression]
        if self._anchor is None or anchors != {self.anchor_id}:
            return state, _CODECS["fp16"]
        return state - self._anchor, _CODECS["int8"]

    def change(
        self, state: torch.Tensor, difference: torch.Tensor, *, alpha: float, plain: bool
    ) -> NDArray[np.float32]:
        """What to add to the parameters, float32 [size], given group mean - own state. `plain`: no outer step."""
        if self._outer is None or plain:
            return (difference * alpha).numpy()
        mean = (state + difference).numpy()
        return self._outer.step(mean) - state.numpy()


def check_codec(name: str) -> None:
    """Send random values and zeros through the codec once, so that a broken one is found now and not after a night.

    Raises:
        ConfigError: it raises, or gives other values back.
    """
    codec = _CODECS[name]
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    try:
        decoded, zeros = (
            deserialize_torch_tensor(codec.compress(sent, CompressionInfo.from_tensor(sent)))
            for sent in (values, torch.zeros(1000))
        )
    except Exception as error:  # whatever a codec may raise: numpy 2.4 broke hivemind's with a TypeError
        raise ConfigError(
            f"gossip.compression={name} cannot decode on this machine ({error}); use fp16 or none"
        ) from error
    if (decoded - values).abs().median() > _TOLERANCE[name] or not torch.equal(zeros, torch.zeros(1000)):
        raise ConfigError(f"gossip.compression={name} decodes wrongly on this machine; use fp16 or none")
