"""What groupmates send in an all-reduce is looked at before it counts.

Reaches into hivemind 1.1 (`TensorPartReducer.accumulate_part`, `TensorPartContainer.register_processed_part` and
`_input_parts_by_peer`).
"""

from __future__ import annotations

import asyncio
import math

from hivemind.averaging.partition import TensorPartContainer, TensorPartReducer
from torch import Tensor


class BadPart(Exception):
    """A groupmate sends a part of another shape than asked for, or one that weighs what nothing can weigh."""


def check_parts(reducer: TensorPartReducer, *, weight: float | None) -> None:
    """Let a reducer take nothing else than the parts that it is to average: torch would stretch a part of one number to
    any shape.

    All senders of a part wait for one future. One whose stream ends is cancelled, and would cancel the future with
    itself: the next part of another would then look like one that cannot be averaged. So each waits behind a shield.

    Args:
        weight: of everybody; None: whatever each says.
    """
    accumulate, shapes, common = reducer.accumulate_part, reducer.part_shapes, weight

    async def accumulate_part(sender_index: int, part_index: int, tensor_part: Tensor, weight: float = 1.0) -> Tensor:
        is_allowed = 0 < weight < math.inf if common is None else weight == common
        if part_index >= len(shapes) or tensor_part.shape != shapes[part_index] or not is_allowed:
            raise BadPart(f"part {part_index}, of shape {list(tensor_part.shape)} and weight {weight:g}")
        part = asyncio.ensure_future(accumulate(sender_index, part_index, tensor_part, weight))
        part.add_done_callback(lambda done: done.cancelled() or done.exception())  # there may be nobody waiting for it
        return await asyncio.shield(part)

    reducer.accumulate_part = accumulate_part


def check_answers(container: TensorPartContainer) -> None:
    """Let a container take for each part that was sent only a mean of the same shape."""
    register = container.register_processed_part

    def register_processed_part(peer_index: int, part_index: int, part: Tensor) -> None:
        sent, _ = container._input_parts_by_peer[peer_index][part_index]
        if part.shape != sent.shape:
            raise BadPart(f"the mean of part {part_index}, of shape {list(part.shape)}")
        register(peer_index, part_index, part)

    container.register_processed_part = register_processed_part
