"""Every request of other peers comes through here, and every request to them: of the DHT, of the averager, and the
streams of a round and of a newcomer. Whoever does not know the run's secret gets one refusal."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from hivemind.p2p import P2P, PeerID

from ray_gossip.gossip.admission import TOKEN_BYTES, Refused, Secret, Tokens

_TOKEN_S = 10.0  # for the token of a stream to come

_open_to_all = P2P._ping_daemon  # hivemind calls it once, when it has reached the daemon


def close_doors(secret: Secret, *, refused: Callable[[str, str], None] = lambda peer_id, why: None) -> None:
    """From now on every connection of this process to its libp2p daemon asks others for the secret, and shows it.

    Args:
        refused: is told of each request that was refused: by whom, and why. In the event loop; must not block.
    """

    async def closed(self: P2P) -> None:
        await _open_to_all(self)
        self._client = ClosedClient(self._client, Tokens(secret, own=self.peer_id.to_bytes()), refused)

    P2P._ping_daemon = closed


class ClosedClient:
    """hivemind's connection to its daemon, with a token before each request.

    Args:
        client: hivemind's own. What is not a request goes through unchanged.
    """

    def __init__(self, client: Any, tokens: Tokens, refused: Callable[[str, str], None]) -> None:
        self._client, self._tokens, self._refused = client, tokens, refused

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def add_unary_handler(
        self, proto: str, handler: Callable[[bytes, PeerID], Awaitable[bytes]], balanced: bool = False
    ) -> None:
        async def closed(request: bytes, caller: PeerID) -> bytes:
            token, content = request[:TOKEN_BYTES], request[TOKEN_BYTES:]
            self._admit(caller, proto, token, content)
            answer = await handler(content, caller)
            return self._tokens.answer(caller.to_bytes(), proto, token, answer) + answer

        await self._client.add_unary_handler(proto, closed, balanced)

    async def call_unary_handler(self, callee: PeerID, proto: str, content: bytes) -> bytes:
        token = self._tokens.ask(callee.to_bytes(), proto, content)
        answer = await self._client.call_unary_handler(callee, proto, token + content)
        return self._tokens.check(callee.to_bytes(), proto, token, answer)

    async def stream_handler(self, proto: str, handler: Callable[..., Awaitable[None]], balanced: bool = False) -> None:
        async def closed(stream: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                token = await asyncio.wait_for(reader.readexactly(TOKEN_BYTES), _TOKEN_S)
                self._admit(stream.peer_id, proto, token)
            except (Refused, asyncio.IncompleteReadError, asyncio.TimeoutError, ConnectionError):
                writer.close()
                return
            await handler(stream, reader, writer)

        await self._client.stream_handler(proto, closed, balanced)

    async def stream_open(self, callee: PeerID, protocols: Any) -> Any:
        stream, reader, writer = await self._client.stream_open(callee, protocols)
        writer.write(self._tokens.ask(callee.to_bytes(), stream.proto))
        return stream, reader, writer

    def _admit(self, caller: PeerID, proto: str, token: bytes, content: bytes = b"") -> None:
        try:
            self._tokens.admit(caller.to_bytes(), proto, token, content)
        except Refused as why:
            self._refused(caller.to_base58(), str(why))
            raise
