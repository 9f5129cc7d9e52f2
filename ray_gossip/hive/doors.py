"""Every request of other peers comes through here, and every request to them: of the DHT, of the averager, and the
streams of a round and of a newcomer. Whoever does not know the run's secret gets one refusal."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from typing import Any

from hivemind.p2p import P2P, P2PHandlerError, PeerID

from ray_gossip.gossip.admission import TOKEN_BYTES, VERSION, Refused, Secret, Tokens

_TOKEN_S = 10.0  # for the token of a stream to come

_GIVE = "give the secret of that swarm: --secret_file, or RAY_GOSSIP_SECRET_FILE"

_LINE = 400  # bytes: a pipe takes so many at once
_LINES = 100

_open_to_all = P2P._ping_daemon  # hivemind calls it once, when it has reached the daemon
_heard, _told = -1, -1  # the ends of a pipe, of one sidecar and of what it forks


def close_doors(secret: Secret | None) -> None:
    """From now on every connection of this process, and of those that it forks, to its libp2p daemon asks others for
    the secret, and shows it. None: it asks for none, and has none to show."""

    async def closed(p2p: P2P) -> None:
        await _open_to_all(p2p)
        tokens = Tokens(secret, own=p2p.peer_id.to_bytes()) if secret is not None else None
        p2p._client = OpenClient(p2p._client) if tokens is None else ClosedClient(p2p._client, tokens)

    global _heard, _told
    if _heard < 0:
        _heard, _told = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    P2P._ping_daemon = closed


def refusals() -> tuple[str, ...]:
    """What was refused at the doors of this peer, or to it at those of others, since this was last asked; the first
    hundred, and each as a sentence."""
    content = b""
    with contextlib.suppress(BlockingIOError):
        content = os.read(_heard, _LINE * _LINES)
    return tuple(line.decode(errors="replace") for line in content.splitlines())


def _tell(sentence: str) -> None:
    with contextlib.suppress(BlockingIOError):  # nobody has asked for long: there are enough
        os.write(_told, sentence.encode()[: _LINE - 1] + b"\n")


class OpenClient:
    """hivemind's connection to its daemon. Tells when another peer asks for a secret.

    Args:
        client: hivemind's own. What is not a request goes through unchanged.
    """

    _advice = f"{_GIVE} (swarm.open=true is for open swarms)"

    def __init__(self, client: Any) -> None:
        self._daemon = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._daemon, name)

    async def call_unary_handler(self, callee: PeerID, proto: str, content: bytes) -> bytes:
        try:
            answer: bytes = await self._daemon.call_unary_handler(callee, proto, content)
        except P2PHandlerError as error:
            if Refused.__name__ in str(error):
                why = _quoted(str(error))
                advice = "set both clocks by NTP" if "clock" in why else self._advice
                _tell(f"peer {callee.to_base58()} refused this one, {why}; {advice}")
            elif "DecodeError" in str(error):
                advice = "set swarm.open=true, and give no secret"
                _tell(f"peer {callee.to_base58()} knows of no secret: its swarm is open; {advice}")
            raise
        return answer


class _BeginsWith:
    """A stream's writer that says something before the first thing that it is given: a packet of its own would have to
    go through two daemons."""

    def __init__(self, writer: asyncio.StreamWriter, begin: bytes) -> None:
        self._writer, self._begin = writer, begin

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)

    def write(self, content: bytes) -> None:
        self._writer.write(self._begin + content if self._begin else content)
        self._begin = b""


async def _token_of(reader: asyncio.StreamReader) -> bytes:
    """Who has none is not waited for: what else comes may be shorter than a token."""
    begin = await reader.readexactly(1)
    return begin if begin != VERSION else begin + await reader.readexactly(TOKEN_BYTES - 1)


def _quoted(error: str) -> str:
    """Of the other peer's `Refused('why')` the why."""
    return "".join(error.partition(Refused.__name__)[2].splitlines()).strip("()'\"")[:200]


class ClosedClient(OpenClient):
    """With a token before each request."""

    _advice = _GIVE

    def __init__(self, client: Any, tokens: Tokens) -> None:
        super().__init__(client)
        self._tokens = tokens

    async def add_unary_handler(
        self, proto: str, handler: Callable[[bytes, PeerID], Awaitable[bytes]], balanced: bool = False
    ) -> None:
        async def closed(request: bytes, caller: PeerID) -> bytes:
            token, content = request[:TOKEN_BYTES], request[TOKEN_BYTES:]
            self._admit(caller, proto, token, content)
            answer = await handler(content, caller)
            return self._tokens.answer(caller.to_bytes(), proto, token, answer) + answer

        await self._daemon.add_unary_handler(proto, closed, balanced)

    async def call_unary_handler(self, callee: PeerID, proto: str, content: bytes) -> bytes:
        token = self._tokens.ask(callee.to_bytes(), proto, content)
        answer = await super().call_unary_handler(callee, proto, token + content)
        try:
            return self._tokens.check(callee.to_bytes(), proto, token, answer)
        except Refused as why:
            _tell(f"peer {callee.to_base58()} was asked and not believed: {why}")
            raise

    async def stream_handler(self, proto: str, handler: Callable[..., Awaitable[None]], balanced: bool = False) -> None:
        async def closed(stream: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                token = await asyncio.wait_for(_token_of(reader), _TOKEN_S)
                self._admit(stream.peer_id, proto, token)
            except (Refused, asyncio.IncompleteReadError, asyncio.TimeoutError, ConnectionError):
                writer.close()
                return
            await handler(stream, reader, writer)

        await self._daemon.stream_handler(proto, closed, balanced)

    async def stream_open(self, callee: PeerID, protocols: Any) -> Any:
        stream, reader, writer = await self._daemon.stream_open(callee, protocols)
        return stream, reader, _BeginsWith(writer, self._tokens.ask(callee.to_bytes(), stream.proto))

    def _admit(self, caller: PeerID, proto: str, token: bytes, content: bytes = b"") -> None:
        try:
            self._tokens.admit(caller.to_bytes(), proto, token, content)
        except Refused as why:
            _tell(f"peer {caller.to_base58()} was refused: {why}")
            raise
