"""hivemind's reducer with a mean that one wrong peer moves by little: see `gossip.robust`.

Reaches into hivemind 1.1: `TensorPartReducer` adds each part to `accumulator`, and divides it when all have come.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from hivemind.averaging.partition import TensorPartReducer
from torch import Tensor

from ray_gossip.gossip.robust import robust_mean


class _Sent(NamedTuple):
    """In place of a part, so that it is known whose it is."""

    sender: int
    part: Tensor


class _Parts:
    """In place of their sum: all of them, M times the memory of one (512 KB at most)."""

    def __init__(self, rule: str, num_far: Counter[int]) -> None:
        self._rule, self._num_far, self._sent = rule, num_far, list[_Sent]()

    def add_(self, sent: _Sent, *, alpha: float) -> None:
        """`alpha`: all count alike, for else a peer could count as much as it likes."""
        self._sent.append(sent)

    def div_(self, denominator: float) -> Tensor:
        found = robust_mean(self._rule, torch.stack([sent.part.reshape(-1) for sent in self._sent]))
        self._num_far.update(self._sent[row].sender for row in found.far)
        return found.values.reshape(self._sent[0].part.shape)


class RobustReducer(TensorPartReducer):
    """Takes the part of a vector that this peer reduces from all its group.

    Args:
        rule: clip or trimmed.
    """

    def __init__(self, part_shapes: Sequence[torch.Size], num_senders: int, *, rule: str) -> None:
        self._rule, self._num_far = rule, Counter[int]()
        super().__init__(part_shapes, num_senders)

    @classmethod
    def in_place_of(cls, plain: TensorPartReducer, *, rule: str) -> RobustReducer:
        plain.finished.set()  # it is gone without a word
        return cls(plain.part_shapes, plain.num_senders, rule=rule)

    @property
    def far(self) -> list[int]:
        """The senders that were far from the others in most parts."""
        return [sender for sender, count in self._num_far.items() if 2 * count > self.num_parts]

    def reset_accumulators(self) -> None:
        super().reset_accumulators()
        if not self.finished.is_set():
            self.accumulator = _Parts(self._rule, self._num_far)

    async def accumulate_part(
        self, sender_index: int, part_index: int, tensor_part: Tensor, weight: float = 1.0
    ) -> Tensor:
        sent = _Sent(sender_index, tensor_part)
        mean: Tensor = await super().accumulate_part(sender_index, part_index, sent, weight)
        return mean
