"""What a newcomer downloads: the averaged state of a peer, the rest of its model, and what its optimizer remembers, in
chunks, and in the end a digest of it all.

hivemind serialises everything before it sends the first byte, and gives that 2.5 s. Here the first message goes out at
once, and what counts is progress: however large a model is, a newcomer waits as long as chunks go on coming.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

import psutil
import torch
from hivemind.p2p import P2PHandlerError
from hivemind.proto import averaging_pb2, runtime_pb2
from torch import Tensor

from ray_gossip.causes import UNREACHABLE
from ray_gossip.errors import SwarmError
from ray_gossip.gossip.handover import Damaged, Handover, StandsStill
from ray_gossip.gossip.messages import Described, Malformed, Offered, from_wire, to_wire
from ray_gossip.hive.rendezvous import GONE
from ray_gossip.tensor_memory import bytes_of

_CHUNK_BYTES = 2**19
_DIGEST_BYTES = 16
_CURRENT = 3  # donors that are asked for a current model before one that stands still will do
_PROGRESS_S = 30.0  # from chunk to chunk: a donor that is silent for longer is given up


async def send(handover: Handover) -> AsyncIterator[averaging_pb2.DownloadData]:
    """The messages of a donor."""
    described = [_described(handover.rest), _described(handover.memory)]
    head = Offered(handover.local_step, handover.is_current, handover.layout, handover.state.numel(), *described)
    yield averaging_pb2.DownloadData(metadata=to_wire(head))
    loop, digest = asyncio.get_running_loop(), hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for tensor in (handover.state, *handover.rest.values(), *handover.memory.values()):
        for chunk in _chunks(tensor):
            payload = await loop.run_in_executor(None, bytes_of, chunk)
            digest.update(payload)
            yield averaging_pb2.DownloadData(tensor_part=runtime_pb2.Tensor(buffer=payload))
    yield averaging_pb2.DownloadData(metadata=digest.digest())


async def fetch(asked: Sequence[str], *, stub: Callable[[str], Any], size: int, layout: str) -> Handover | str:
    """The model of one of these peers, of one that trains if possible; else why nobody gave any."""
    why = "nobody is there"
    tries = [(peer_id, False) for peer_id in asked[:_CURRENT]] if len(asked) > 1 else []
    for peer_id, takes_old in [*tries, *((peer_id, True) for peer_id in asked)]:
        try:
            stream = await stub(peer_id).rpc_download_state(averaging_pb2.DownloadRequest())
            handover = await receive(stream, size=size, layout=layout, takes_old=takes_old)
        except (*GONE, asyncio.TimeoutError, EOFError, Damaged, StandsStill) as error:
            why = _in_words(error)
            continue
        if handover is not None:
            return handover
        why = "it shares none yet"
    return why


def _in_words(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    if isinstance(error, P2PHandlerError):
        return text.partition(": ")[2] or text  # before it, who was asked
    return UNREACHABLE if isinstance(error, GONE) else text


async def receive(
    messages: AsyncIterator[averaging_pb2.DownloadData], *, size: int, layout: str, takes_old: bool = False
) -> Handover | None:
    """What a donor sends; None when it shares nothing.

    Args:
        takes_old: an old model is better than none.

    Raises:
        StandsStill: its model is an old one.
        SwarmError: it averages other tensors.
        Damaged: what came is not what it sent.
        EOFError: it ended in the middle.
        asyncio.TimeoutError: it has fallen silent.
    """
    try:
        head = await asyncio.wait_for(anext(messages), _PROGRESS_S)
    except StopAsyncIteration:
        return None
    try:
        offered = from_wire(Offered, head.metadata)
    except Malformed as error:
        raise Damaged(f"what came of its model is none: {error}") from None
    if (offered.num_elements, offered.layout) != (size, layout):
        theirs = offered.num_elements
        other = f"{theirs:,} elements, this peer has {size:,}" if theirs != size else "other tensors"
        raise SwarmError(f"the swarm averages {other}: use the same model, with the same parts frozen")
    if not (offered.is_current or takes_old):
        raise StandsStill(f"its trainer stands still, at local step {offered.local_step}")
    _check_room([*offered.rest, *offered.memory])
    state, rest, memory = torch.empty(size), _empty(offered.rest), _empty(offered.memory)
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for tensor in (state, *rest.values(), *memory.values()):
        for chunk in _chunks(tensor):
            payload = bytearray((await _next(messages)).tensor_part.buffer)
            if len(payload) != chunk.nbytes:
                raise Damaged(f"a part of its model has {len(payload)} bytes, not {chunk.nbytes}")
            digest.update(payload)
            chunk.copy_(torch.frombuffer(payload, dtype=tensor.dtype))
    if (await _next(messages)).metadata != digest.digest():
        raise Damaged("what came of its model is not what it sent")
    return Handover(
        local_step=offered.local_step,
        state=state,
        rest=rest,
        memory=memory,
        layout=layout,
        is_current=offered.is_current,
    )


async def _next(messages: AsyncIterator[averaging_pb2.DownloadData]) -> averaging_pb2.DownloadData:
    try:
        return await asyncio.wait_for(anext(messages), _PROGRESS_S)
    except StopAsyncIteration:
        raise EOFError("it ended in the middle") from None


def _described(tensors: Mapping[str, Tensor]) -> tuple[Described, ...]:
    return tuple(
        Described(name, str(each.dtype).removeprefix("torch."), tuple(each.shape)) for name, each in tensors.items()
    )


def _check_room(described: Sequence[Described]) -> None:
    """A donor may say that anything comes. Raises Damaged."""
    num_bytes = 0
    for each in described:
        dtype = getattr(torch, each.dtype, None)
        if not isinstance(dtype, torch.dtype):
            raise Damaged("what came of its model names types that torch does not know")
        num_bytes += math.prod(each.shape) * dtype.itemsize
    if num_bytes > (room := psutil.virtual_memory().available):
        raise Damaged(f"its model takes {num_bytes:,} bytes, and this machine has {room:,} left")


def _empty(described: Sequence[Described]) -> dict[str, Tensor]:
    return {each.name: torch.empty(each.shape, dtype=getattr(torch, each.dtype)) for each in described}


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    """Pieces of a contiguous tensor, in order."""
    return iter(tensor.reshape(-1).split(max(1, _CHUNK_BYTES // tensor.element_size()))) if tensor.numel() else iter(())
