"""Defects of hivemind 1.1, mended.

`ControlClient` reads all answers of the libp2p daemon in one task. An answer that comes in the moment in which its call
is given up (a time-out on a busy machine) finds a cancelled future: the task dies of `InvalidStateError`, unseen, and
from then on the process neither gets an answer nor hears a request, for ever. No subclass of ours can reach it: it is
mended where hivemind is imported.

`use_relay=False` is not heard by libp2p's daemon: `-relay=0` changes none of its defaults, by which each peer relays
streams between strangers, and spends 0.3 s of CPU and 30 MB on a table of the world's networks. A file of settings is
heard.

A peer may name a new id in each of its requests to the DHT, or that of another. All are kept: some hundreds of one
peer's crowd out all others, and what is stored goes nowhere.

An answer of the DHT may name any number of nodes near a key: all are read and sorted, at every question.

A store of the DHT keeps a line for every time that something is sent to it, until that would have expired: a record
that comes again and again fills the memory. And who sends a peer's last declaration but one once more has the last one
forgotten when that expires. What has expired under a key is kept until somebody asks for that key.

The message of a stream may be as long as its sender says: it is kept in memory until it is whole.

A DHT process reads its commands from a pipe that its event loop has made non-blocking: of one above 16 KB it may meet
the first half alone. The command is lost, and the second half is read as a command.

An averager that is shut down in the middle of an all-reduce takes the future of that all-reduce for the all-reduce: it
ends with a traceback, and its groupmates hear nothing. With a traceback ends one, too, whose daemon has died.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import os
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import UUID

from hivemind import DHT
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.storage import DHTLocalStorage
from hivemind.p2p import P2P, P2PDaemonError, PeerID
from hivemind.p2p.p2p_daemon_bindings.control import ControlClient
from hivemind.proto import dht_pb2
from hivemind.utils.timed_storage import TimedStorage

_MOST_BYTES = 2**22  # of a message; a part has 512 KB
_FEW = 100  # lines of a store that need no clearing
_TIDY_S = 5.0


class _AwaitedCalls(dict[UUID, "asyncio.Future[bytes]"]):
    """Calls by id, in which only those are found that still wait for an answer."""

    def __contains__(self, call_id: object) -> bool:
        return super().__contains__(call_id) and not self[call_id].done()  # type: ignore[index]


def mend_late_answers() -> None:
    """From now on an answer that nobody waits for is passed over, as hivemind meant it to be."""
    if ControlClient.__init__ is not _init:
        ControlClient.__init__ = _init


def forbid_relays() -> None:
    """From now on a daemon that is told to be no relay is none."""
    if P2P._make_process_args is not _arguments:
        P2P._make_process_args = staticmethod(_arguments)


def bound_messages() -> None:
    """From now on a stream ends whose next message is longer than any of hivemind's or ours."""
    P2P.receive_raw_data = staticmethod(_receive)


def keep_one_id_of_a_peer() -> None:
    """From now on the DHT knows each peer by one id, its latest, and nobody by that of another."""
    DHTProtocol.update_routing_table = _update_routing_table


def bound_answers() -> None:
    """From now on an answer of the DHT names no more nodes than were asked for."""
    DHTProtocol.get_stub = _get_stub


def keep_records_until_they_expire() -> None:
    """From now on a store of the DHT forgets each record when that expires, and the lines of earlier ones before."""
    TimedStorage.store = _store
    DHTLocalStorage.store_subkey = _store_subkey


def _store(self: TimedStorage[Any, Any], key: Any, value: Any, expiration_time: float) -> bool:
    held = self.data.get(key)
    if held is not None and held.expiration_time >= expiration_time:
        return False
    was_stored: bool = _original_store(self, key, value, expiration_time)
    if len(self.expiration_heap) > 2 * len(self.key_to_heap) + _FEW:
        self.expiration_heap = list(self.key_to_heap.values())
        heapq.heapify(self.expiration_heap)
    return was_stored


def _store_subkey(self: DHTLocalStorage, key: Any, subkey: Any, value: bytes, expiration_time: float) -> bool:
    if monotonic() > self.__dict__.get("tidied_at", 0.0) + _TIDY_S:
        self.tidied_at = monotonic()
        for held, _ in list(self.data.values()):
            len(held)  # which takes out of a dictionary what has expired
    was_stored: bool = _original_store_subkey(self, key, subkey, value, expiration_time)
    return was_stored


async def _update_routing_table(self: DHTProtocol, node_id: Any, peer_id: PeerID, responded: bool = True) -> None:
    table = self.routing_table
    if responded and node_id is not None:
        if table.get(node_id=node_id, default=peer_id) != peer_id:
            return
        before = table.get(peer_id=peer_id)
        if before is not None and before != node_id:
            del table[before]
    await _original_update(self, node_id, peer_id, responded)


def _get_stub(self: DHTProtocol, peer: PeerID) -> _Asks:
    return _Asks(_original_stub(self, peer), self.bucket_size)


class _Asks:
    """What is asked of one node."""

    def __init__(self, stub: Any, most_nodes: int) -> None:
        self._stub, self._most_nodes = stub, most_nodes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stub, name)

    async def rpc_find(self, request: dht_pb2.FindRequest, timeout: float) -> dht_pb2.FindResponse:
        response = await self._stub.rpc_find(request, timeout=timeout)
        for result in response.results:
            del result.nearest_node_ids[self._most_nodes :], result.nearest_peer_ids[self._most_nodes :]
        return response


async def _receive(reader: asyncio.StreamReader) -> bytes:
    num_bytes = int.from_bytes(await reader.readexactly(P2P.HEADER_LEN), P2P.BYTEORDER)
    if num_bytes > _MOST_BYTES:
        raise ValueError(f"a message of {num_bytes:,} bytes is announced, and {_MOST_BYTES:,} are the most")
    return await reader.readexactly(num_bytes)


class TakesLongCommands(DHT):
    """hivemind's DHT, whose process waits for the rest of a command that has begun to come."""

    _inner_pipe: Any

    def run(self) -> None:
        self._inner_pipe = _Whole(self._inner_pipe)
        super().run()


class _Whole:
    """The reading end of a pipe."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)

    def recv(self) -> Any:
        os.set_blocking(self._pipe.fileno(), True)
        return self._pipe.recv()


class EndsItsRounds:
    """Mix-in for hivemind's averagers: a shutdown cancels the all-reduces that run."""

    async def _shutdown(self, timeout: float | None) -> None:
        averager: Any = self
        for future in list(averager._running_groups.values()):
            if future.done() and not future.cancelled():
                future.result().finalize(cancel=True)
        with contextlib.suppress(OSError, P2PDaemonError, asyncio.TimeoutError):  # a daemon that is gone calls nobody
            await asyncio.wait_for(averager.remove_p2p_handlers(averager._p2p, namespace=averager.prefix), timeout)


_original_store = TimedStorage.store
_original_store_subkey = DHTLocalStorage.store_subkey
_original_update = DHTProtocol.update_routing_table
_original_stub = DHTProtocol.get_stub
_original_init = ControlClient.__init__


def _init(self: Any, *args: Any, **options: Any) -> None:
    _original_init(self, *args, **options)
    self._pending_calls = _AwaitedCalls()


_NO_RELAY = Path(__file__).with_name("p2pd.json")
_original_arguments = P2P._make_process_args


def _arguments(*words: Any, relay: bool, **options: Any) -> list[str]:
    settings = {} if relay else {"f": _NO_RELAY}
    found: list[str] = _original_arguments(*words, relay=relay, **settings, **options)
    return found
