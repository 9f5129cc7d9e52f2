"""What a newcomer downloads, without a network."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator

import pytest
import torch
from hivemind.proto import averaging_pb2

from ray_gossip.errors import SwarmError
from ray_gossip.gossip.handover import Damaged, Handover
from ray_gossip.gossip.sharing import Sharing
from ray_gossip.hive import download
from ray_gossip.hive.download import receive, send

REST = {
    "mask": torch.full((3, 3), -torch.inf).triu(1),
    "count": torch.tensor(7),
    "codes": torch.arange(9, dtype=torch.uint8),
    "flags": torch.tensor([True, False]),
    "half": torch.randn(2, 5).to(torch.bfloat16),
    "wave": torch.randn(4, dtype=torch.complex64),
    "turned": torch.randn(3, 4).t(),
    "nothing": torch.zeros(0, 3),
}


MEMORY = {"Adam/0/exp_avg": torch.randn(3, 4), "Adam/0/step": torch.tensor(300.0)}


def a_model(size: int) -> Handover:
    return Handover(local_step=300, state=torch.randn(size), rest=REST, memory=MEMORY, layout="abc")


def test_what_arrives_is_bit_for_bit_what_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_CHUNK_BYTES", 1000)
    sent = a_model(12_345)
    arrived = asyncio.run(receive(send(sent), size=12_345, layout="abc"))
    assert arrived is not None
    assert (arrived.local_step, arrived.layout, list(arrived.rest)) == (300, "abc", list(REST))
    assert torch.equal(arrived.state, sent.state)
    for name, tensor in REST.items():
        assert (arrived.rest[name].dtype, arrived.rest[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(arrived.rest[name], tensor)
    assert list(arrived.memory) == list(MEMORY)
    assert all(torch.equal(arrived.memory[name], tensor) for name, tensor in MEMORY.items())


def test_what_was_changed_on_its_way_is_not_taken_over() -> None:
    async def changed() -> AsyncIterator[averaging_pb2.DownloadData]:
        messages = [message async for message in send(a_model(100))]
        spoiled = bytearray(messages[1].tensor_part.buffer)
        spoiled[7] ^= 1
        messages[1].tensor_part.buffer = bytes(spoiled)
        for message in messages:
            yield message

    with pytest.raises(Damaged, match="is not what it sent"):
        asyncio.run(receive(changed(), size=100, layout="abc"))


def test_the_first_message_goes_out_before_anything_is_serialised() -> None:
    async def test() -> None:
        messages = send(a_model(50_000_000))
        started = time.monotonic()
        first = await anext(messages)
        assert time.monotonic() - started < 0.5
        assert first.metadata
        assert len(first.SerializeToString()) < 1000
        await messages.aclose()  # type: ignore[attr-defined]

    asyncio.run(test())


def test_another_model_is_refused_before_it_is_sent() -> None:
    with pytest.raises(SwarmError, match="averages other tensors"):
        asyncio.run(receive(send(a_model(10)), size=10, layout="another"))
    with pytest.raises(SwarmError, match="averages 10 elements, this peer has 11"):
        asyncio.run(receive(send(a_model(10)), size=11, layout="abc"))


async def nothing() -> AsyncIterator[averaging_pb2.DownloadData]:
    messages: list[averaging_pb2.DownloadData] = []
    for message in messages:
        yield message


def test_a_peer_that_shares_nothing_is_no_donor() -> None:
    assert asyncio.run(receive(nothing(), size=1, layout="abc")) is None


def test_a_donor_that_ends_in_the_middle_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_CHUNK_BYTES", 1000)

    async def cut() -> AsyncIterator[averaging_pb2.DownloadData]:
        messages = send(a_model(12_345))
        for _ in range(4):
            yield await anext(messages)

    with pytest.raises(EOFError):
        asyncio.run(receive(cut(), size=12_345, layout="abc"))


def test_progress_counts_and_silence_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_PROGRESS_S", 0.3)
    monkeypatch.setattr(download, "_CHUNK_BYTES", 1000)

    async def paused(pause_s: float) -> AsyncIterator[averaging_pb2.DownloadData]:
        async for message in send(a_model(2_000)):
            await asyncio.sleep(pause_s)
            yield message

    assert asyncio.run(receive(paused(0.1), size=2_000, layout="abc")) is not None  # 16 chunks, 1.6 s
    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(receive(paused(0.6), size=2_000, layout="abc"))


def test_a_newcomer_is_answered_between_two_local_steps_or_not_at_all() -> None:
    sharing, model, got = Sharing(), a_model(10), []
    asking = threading.Thread(target=lambda: got.append(sharing.ask(within_s=10.0)))
    asking.start()
    deadline = time.monotonic() + 10.0
    while not sharing.is_asked_for:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    sharing.answer(model)
    asking.join()
    assert got == [model]
    assert sharing.ask(within_s=0.05) is None
    assert not sharing.is_asked_for
