"""What a round sends, and what it makes of the group's mean. No network here."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from hivemind.compression import (
    CompressionBase,
    CompressionInfo,
    Float16Compression,
    NoCompression,
    deserialize_torch_tensor,
)
from numpy.typing import NDArray

from ray_gossip.causes import OUT_OF_RANGE
from ray_gossip.config import GossipConfig
from ray_gossip.errors import ConfigError
from ray_gossip.hive.codec import WholeRange8Bit
from ray_gossip.mixing import OuterMomentum, Sketch

NO_ANCHOR = -1
_CODECS: dict[str, CompressionBase] = {
    "none": NoCompression(),
    "fp16": Float16Compression(),
    "int8": WholeRange8Bit(),
}
_LARGEST = 65504.0  # that 16 bits hold; 8 bits need them while there is no common anchor
_TOLERANCE = {"none": 0.0, "fp16": 2e-3, "int8": 0.1}  # largest error of a codec on standard normal values, median
# Of an anchor's norm. An exact round leaves peers apart by 1e-11 to 2e-8 of it, for x + (mean - x) is rounded otherwise
# in each; what differs by more is another anchor.
_SAME_ANCHOR = 1e-5


class Mixer:
    """Codec, anchor, outer momentum: the state that averaging keeps from round to round, one per peer.

    Args:
        num_parameters: the first so many elements of a state are parameters that train. Only these get an outer step,
            and only these travel compressed: eight or sixteen bits do not hold every running variance.
    """

    def __init__(self, gossip: GossipConfig, *, num_parameters: int) -> None:
        self._gossip, self._num_parameters = gossip, num_parameters
        self._anchor: torch.Tensor | None = None
        self._outer: OuterMomentum | None = None
        self.anchor_id = NO_ANCHOR

    def start(self, state: torch.Tensor, *, is_founder: bool) -> None:
        """Remember where the swarm starts. Founders start from the same parameters, so these are a shared anchor."""
        if self._gossip.outer != "none":
            self._outer = OuterMomentum(
                state[: self._num_parameters].numpy(),
                lr=self._gossip.outer_lr,
                momentum=self._gossip.outer_momentum,
                nesterov=self._gossip.outer == "nesterov",
            )
        if is_founder:
            self.set_anchor(state)

    def keep(self, out: torch.Tensor) -> None:
        """Copy all that counts in later rounds into `out`, float32 [num_kept]."""
        if out.numel():
            out[0] = float(self._anchor is not None)
            for there, here in zip(self._split(out), self._arrays(), strict=True):
                there.copy_(here)

    def restore(self, kept: torch.Tensor) -> None:
        """Go on as the one did that has kept this. After `start`."""
        if kept.numel():
            if kept[0] and self._anchor is None:
                self._anchor = torch.empty(self._num_parameters)
            for there, here in zip(self._split(kept), self._arrays(), strict=True):
                here.copy_(there)
            self.anchor_id = NO_ANCHOR if self._anchor is None else anchor_id(self._anchor)

    def _arrays(self) -> list[torch.Tensor]:
        outer = () if self._outer is None else map(torch.from_numpy, self._outer.kept)
        return [*([] if self._anchor is None else [self._anchor]), *outer]

    def _split(self, kept: torch.Tensor) -> list[torch.Tensor]:
        """One for each of the arrays: an anchor, when there is one, has its place at the end."""
        arrays = kept[1:].split(self._num_parameters) if self._num_parameters else []
        num_outer = 0 if self._outer is None else 2
        return [*([] if self._anchor is None else [arrays[-1]]), *arrays[:num_outer]]

    def set_anchor(self, state: torch.Tensor) -> None:
        """From now on differences are taken from this state, which the whole swarm has just agreed on. Its id follows
        from its values, so that peers that did not agree do not share it."""
        if self._gossip.compression == "int8":
            self._anchor = state[: self._num_parameters].clone()
            self.anchor_id = anchor_id(self._anchor)
        if self._outer is not None:
            self._outer.restart(state[: self._num_parameters].numpy())

    def refusal(self, state: torch.Tensor) -> str:
        """Why this state cannot travel, if it cannot: the codec would clip it."""
        if self._gossip.compression == "none" or not self._num_parameters:
            return ""
        low, high = torch.aminmax(state[: self._num_parameters])
        largest = max(-float(low), float(high))
        return f"{OUT_OF_RANGE} {_LARGEST:g}: {largest:.3g}" if largest > _LARGEST else ""

    def outgoing(
        self, state: torch.Tensor, *, exact: bool, anchors: frozenset[int], begin: int = 0
    ) -> list[tuple[torch.Tensor, CompressionBase]]:
        """What to put into the all-reduce, one after the other, and how each travels; none is empty.

        Args:
            state: or a piece of it, which begins at `begin`.
            exact: this round becomes the next anchor, so nothing may be lost.
            anchors: ids of the groupmates' anchors. Without a common one, 8 bits would be on raw parameters: 16 then.
        """
        num_parameters = self._num_parameters_of(state, begin)
        parameters, others = state[:num_parameters], state[num_parameters:]
        compression = "none" if exact else self._gossip.compression
        if compression == "none":
            return [(state, _CODECS["none"])]
        if compression == "int8":
            if self._anchor is not None and anchors == {self.anchor_id}:
                parameters = parameters - self._anchor[begin : begin + num_parameters]
            else:
                compression = "fp16"
        sent = [(parameters, _CODECS[compression]), (others, _CODECS["none"])]
        return [(tensor, codec) for tensor, codec in sent if len(tensor)]

    def change(
        self, state: torch.Tensor, difference: torch.Tensor, *, alpha: float, plain: bool, begin: int = 0
    ) -> NDArray[np.float32]:
        """What to add to the state, or to the piece of it that begins at `begin`, float32 of its size, given group mean
        - own state, which may be the same memory afterwards. `plain`: no outer step."""
        if self._outer is None or plain:
            return (difference if alpha == 1.0 else difference.mul_(alpha)).numpy()
        change: NDArray[np.float32] = difference.numpy().copy()
        if not np.isfinite(change).all():
            return change  # which is told, and leaves anchor and velocity as they were
        num_parameters = self._num_parameters_of(state, begin)
        own = state[:num_parameters].numpy()
        change[:num_parameters] = self._outer.step(own + change[:num_parameters], begin=begin) - own
        return change

    def _num_parameters_of(self, piece: torch.Tensor, begin: int) -> int:
        return min(max(0, self._num_parameters - begin), len(piece))


def anchor_id(anchor: torch.Tensor) -> int:
    """The same on peers whose anchors differ by rounding only, and on no others: four random projections, rounded. One
    in a hundred times or less, rounding makes a difference: then 16 bits serve until the next anchor."""
    sketch = Sketch(anchor.numel(), dim=4)(anchor.numpy())
    step = _SAME_ANCHOR * 2.0 ** np.rint(np.log2(max(float(np.linalg.norm(sketch)), 1e-30)))
    rounded = np.rint(sketch / step).astype(np.int64)
    return int.from_bytes(hashlib.blake2b(rounded.tobytes(), digest_size=7).digest(), "big")


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
