"""The defect of hivemind that ray_gossip mends, and the mend."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from hivemind.p2p.p2p_daemon_bindings.control import ControlClient
from hivemind.p2p.p2p_daemon_bindings.utils import write_unsigned_varint
from hivemind.proto import p2pd_pb2

import ray_gossip.hive  # noqa: F401  (mends it)


class Pipe:
    """Takes what is written, for a reader."""

    def __init__(self) -> None:
        self.reader = asyncio.StreamReader()

    def write(self, data: bytes) -> None:
        self.reader.feed_data(data)

    async def drain(self) -> None:
        pass


async def answer(pipe: Any, call_id: Any) -> None:
    response = p2pd_pb2.PersistentConnectionResponse(
        callId=call_id.bytes, callUnaryResponse=p2pd_pb2.CallUnaryResponse(response=b"answer")
    )
    payload = response.SerializeToString()
    await write_unsigned_varint(pipe, len(payload))
    pipe.write(payload)


async def late_answer_then_another(pending: dict[Any, Any] | None) -> Any:
    """What becomes of a call that waits when the answer to a call that was given up arrives first."""
    client: Any = ControlClient(None, _initialized_with_create=True)
    client._read_task = client._write_task = None  # it is never started
    if pending is not None:
        client._pending_calls = pending
    pipe, given_up, waiting = Pipe(), uuid4(), uuid4()
    for call_id in (given_up, waiting):
        client._pending_calls[call_id] = asyncio.get_running_loop().create_future()
    client._pending_calls[given_up].cancel()
    await answer(pipe, given_up)
    await answer(pipe, waiting)
    pipe.reader.feed_eof()
    await client._read_from_persistent_conn(pipe.reader)
    return client._pending_calls[waiting].result()


def test_an_answer_that_comes_too_late_does_not_deafen_the_process() -> None:
    assert asyncio.run(late_answer_then_another(None)) == b"answer"


def test_hivemind_alone_still_needs_the_mend() -> None:
    with pytest.raises(asyncio.InvalidStateError):
        asyncio.run(late_answer_then_another({}))
