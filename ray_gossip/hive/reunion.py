"""Nodes of the DHT that have lost each other, and how they find each other again.

hivemind's node forgets a node that lets one request go unanswered. A peer that stands still for some seconds is
forgotten by all others, and when it goes on, its own requests have timed out: it has forgotten all of them. None of
them would ever call another again. So a node calls those by name that its peer misses.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterable, Sequence
from functools import partial

import hivemind
from hivemind.dht import DHTNode
from hivemind.p2p import P2P, P2PDaemonError, PeerID
from hivemind.utils.multiaddr import Multiaddr

_KEPT = 64  # of those that vanished, the latest
_CALL_S = 15.0  # a node gives up on each of them after 3 s
_DIAL_S = 3.0
_AT_ONCE = 4  # of them that are called every few seconds, for as long as they are missed


async def dial(daemon: P2P, addresses: Sequence[str]) -> list[str]:
    """Connect to those of these multiaddrs that can be reached; returns their peer ids."""
    by_peer: dict[str, list[Multiaddr]] = {}
    for address in addresses:
        where, _, peer_id = address.rpartition("/p2p/")
        by_peer.setdefault(peer_id, []).append(Multiaddr(where))

    async def connect(peer_id: str) -> bool:
        with contextlib.suppress(P2PDaemonError, OSError, asyncio.TimeoutError):  # nobody is there, or not yet
            await asyncio.wait_for(daemon._client.connect(PeerID.from_base58(peer_id), by_peer[peer_id]), _DIAL_S)
            return True
        return False

    connected = await asyncio.gather(*map(connect, by_peer))
    return [peer_id for peer_id, is_there in zip(by_peer, connected, strict=True) if is_there]


class Reunion:
    """The members that one peer misses."""

    def __init__(self, dht: hivemind.DHT) -> None:
        self._dht = dht
        self._vanished: dict[str, None] = {}  # peer ids, the latest at the end
        self._calling: asyncio.Task[None] | None = None

    def note(self, *, present: Iterable[str], vanished: Iterable[str]) -> None:
        """Peer ids of those that are there, and of those whose declaration has expired without a goodbye."""
        for peer_id in present:
            self._vanished.pop(peer_id, None)
        self._vanished |= dict.fromkeys(vanished)
        for peer_id in list(self._vanished)[:-_KEPT]:
            del self._vanished[peer_id]

    def call_some(self) -> None:
        """A few of those that have vanished: they may be back, or it was this peer that was away."""
        self.call(random.sample(list(self._vanished), min(_AT_ONCE, len(self._vanished))))

    def call(self, peer_ids: Sequence[str]) -> None:
        """In the background, unless it is calling already."""
        if peer_ids and (self._calling is None or self._calling.done()):
            self._calling = asyncio.create_task(self.meet(peer_ids))

    async def meet(self, peer_ids: Sequence[str]) -> None:
        """Call these by name."""
        # the DHT process is gone, which its peer hears elsewhere, or stands still: then the next call counts
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            called = self._dht.run_coroutine(partial(_call_by_name, peer_ids=peer_ids), return_future=True)
            await asyncio.wait_for(called, _CALL_S)


async def _call_by_name(dht: hivemind.DHT, node: DHTNode, *, peer_ids: Sequence[str]) -> None:
    """In the DHT process: a node that answers is in this node's routing table again, and this node in that one's."""

    async def call(peer_id: PeerID) -> None:
        if await node.protocol.call_ping(peer_id) is not None:
            node.blacklist.register_success(peer_id)

    await asyncio.gather(*(call(PeerID.from_base58(peer_id)) for peer_id in peer_ids))
