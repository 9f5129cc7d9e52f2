"""What a newcomer downloads: the averaged state of a peer, and the rest of its model, in chunks.

hivemind serialises everything before it sends the first byte, and gives that 2.5 s. Here the first message goes out at
once, and what counts is progress: however large a model is, a newcomer waits as long as chunks go on coming.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import msgpack
import torch
from hivemind.proto import averaging_pb2, runtime_pb2
from torch import Tensor

from ray_gossip.errors import SwarmError
from ray_gossip.gossip.handover import Handover, StandsStill
from ray_gossip.hive.rendezvous import GONE
from ray_gossip.tensor_memory import bytes_of

_CHUNK_BYTES = 2**19
_CURRENT = 3  # donors that are asked for a current model before one that stands still will do
_PROGRESS_S = 30.0  # from chunk to chunk: a donor that is silent for longer is given up


async def send(handover: Handover) -> AsyncIterator[averaging_pb2.DownloadData]:
    """The messages of a donor."""
    described = [[name, str(each.dtype).removeprefix("torch."), *each.shape] for name, each in handover.rest.items()]
    head = [handover.local_step, handover.is_current, handover.layout, handover.state.numel(), described]
    yield averaging_pb2.DownloadData(metadata=msgpack.packb(head))
    loop = asyncio.get_running_loop()
    for tensor in (handover.state, *handover.rest.values()):
        for chunk in _chunks(tensor):
            payload = await loop.run_in_executor(None, bytes_of, chunk)
            yield averaging_pb2.DownloadData(tensor_part=runtime_pb2.Tensor(buffer=payload))


async def fetch(asked: Sequence[str], *, stub: Callable[[str], Any], size: int, layout: str) -> Handover | str:
    """The model of one of these peers, of one that trains if possible; else why nobody gave any."""
    why = "nobody is there"
    tries = [(peer_id, False) for peer_id in asked[:_CURRENT]] if len(asked) > 1 else []
    for peer_id, takes_old in [*tries, *((peer_id, True) for peer_id in asked)]:
        try:
            stream = await stub(peer_id).rpc_download_state(averaging_pb2.DownloadRequest())
            handover = await receive(stream, size=size, layout=layout, takes_old=takes_old)
        except (*GONE, asyncio.TimeoutError, EOFError, StandsStill) as error:
            why = str(error) or type(error).__name__
            continue
        if handover is not None:
            return handover
        why = "it shares none yet"
    return why


async def receive(
    messages: AsyncIterator[averaging_pb2.DownloadData], *, size: int, layout: str, takes_old: bool = False
) -> Handover | None:
    """What a donor sends; None when it shares nothing.

    Args:
        takes_old: an old model is better than none.

    Raises:
        StandsStill: its model is an old one.
        SwarmError: it averages other tensors.
        EOFError: it ended in the middle.
        asyncio.TimeoutError: it has fallen silent.
    """
    try:
        head = await asyncio.wait_for(anext(messages), _PROGRESS_S)
    except StopAsyncIteration:
        return None
    local_step, is_current, theirs, num_elements, described = msgpack.unpackb(head.metadata)
    if (num_elements, theirs) != (size, layout):
        other = f"{num_elements:,} elements, this peer has {size:,}" if num_elements != size else "other tensors"
        raise SwarmError(f"the swarm averages {other}: use the same model, with the same parts frozen")
    if not (is_current or takes_old):
        raise StandsStill(f"its trainer stands still, at local step {local_step}")
    state = torch.empty(size)
    rest = {name: torch.empty(shape, dtype=getattr(torch, dtype)) for name, dtype, *shape in described}
    for tensor in (state, *rest.values()):
        for chunk in _chunks(tensor):
            try:
                message = await asyncio.wait_for(anext(messages), _PROGRESS_S)
            except StopAsyncIteration:
                raise EOFError("it ended in the middle") from None
            payload = bytearray(message.tensor_part.buffer)
            chunk.copy_(torch.frombuffer(payload, dtype=tensor.dtype))
    return Handover(local_step=local_step, state=state, rest=rest, layout=theirs, is_current=is_current)


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    """Pieces of a contiguous tensor, in order."""
    return iter(tensor.reshape(-1).split(max(1, _CHUNK_BYTES // tensor.element_size()))) if tensor.numel() else iter(())
