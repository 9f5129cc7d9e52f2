"""What groupmates send in an all-reduce is looked at before it counts, and what counts is written where it belongs.

Reaches into hivemind 1.1 (`TensorPartReducer.accumulate_part`; of `TensorPartContainer` `register_processed_part`,
`iterate_output_tensors`, `_input_parts_by_peer`, `_outputs_registered_by_peer` and `_output_part_available`).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator

from hivemind.averaging.partition import AllreduceException, TensorPartContainer, TensorPartReducer
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


def collect(container: TensorPartContainer, out: Tensor) -> None:
    """Let a container take for each part that was sent only a mean of the same shape, and write its difference into
    `out` [size] as it comes. hivemind keeps the differences, and puts them together twice: in a large state, a fifth
    of a round's CPU.
    """
    register = container.register_processed_part
    parts = container._input_parts_by_peer
    slices = iter(out.split([len(part) for of_peer in parts for part, _ in of_peer]))
    places = [[next(slices) for _ in of_peer] for of_peer in parts]
    nothing = out[:0]

    def register_processed_part(peer_index: int, part_index: int, part: Tensor) -> None:
        place = places[peer_index][part_index]
        if part.shape != place.shape:
            raise BadPart(f"the mean of part {part_index}, of shape {list(part.shape)}")
        register(peer_index, part_index, nothing)
        place.copy_(part)

    async def iterate_output_tensors() -> AsyncIterator[Tensor]:
        for peer_index, num_parts in enumerate(container.num_parts_by_peer):
            while container._outputs_registered_by_peer[peer_index] < num_parts:
                container._output_part_available[peer_index].clear()
                await container._output_part_available[peer_index].wait()
                if container.finished.is_set():
                    raise AllreduceException("the all-reduce was ended")
        yield out

    container.register_processed_part = register_processed_part
    container.iterate_output_tensors = iterate_output_tensors
