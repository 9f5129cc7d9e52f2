"""Who knows the secret is let in once for each request; whoever does not, or repeats what was said, is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hivemind.p2p import P2P
from hypothesis import given
from hypothesis import strategies as st

from ray_gossip.errors import UserError
from ray_gossip.gossip.admission import TOKEN_BYTES, WINDOW_S, Rates, Refused, Secret, Tokens
from ray_gossip.hive.doors import ClosedClient, close_doors, refusals

SECRET, OTHER = Secret(bytes(32)), Secret(bytes(31) + b"\x01")
DOOR = "DHTProtocol.rpc_store"


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def tokens(name: bytes, secret: Secret = SECRET, clock: Any = None) -> Tokens:
    return Tokens(secret, own=name, clock=clock or Clock())


def test_a_token_is_let_in_once() -> None:
    callee = tokens(b"callee")
    token = tokens(b"caller").ask(b"callee", DOOR, b"content")
    assert len(token) == TOKEN_BYTES
    callee.admit(b"caller", DOOR, token, b"content")
    with pytest.raises(Refused, match="repeats"):
        callee.admit(b"caller", DOOR, token, b"content")


@pytest.mark.parametrize(
    ("caller", "door", "content"),
    [(b"another", DOOR, b"content"), (b"caller", "DHTProtocol.rpc_find", b"content"), (b"caller", DOOR, b"other")],
)
def test_a_token_is_of_one_caller_one_door_and_one_content(caller: bytes, door: str, content: bytes) -> None:
    token = tokens(b"caller").ask(b"callee", DOOR, b"content")
    with pytest.raises(Refused, match="secret"):
        tokens(b"callee").admit(caller, door, token, content)


def test_a_token_is_for_one_peer_and_one_run() -> None:
    token = tokens(b"caller").ask(b"callee", DOOR)
    for callee in (tokens(b"another"), tokens(b"callee", OTHER)):
        with pytest.raises(Refused, match="secret"):
            callee.admit(b"caller", DOOR, token)


@pytest.mark.parametrize("late_s", [-WINDOW_S - 1, WINDOW_S + 1])
def test_a_token_is_of_its_time(late_s: float) -> None:
    clock = Clock()
    token = tokens(b"caller").ask(b"callee", DOOR)
    clock.now += late_s
    with pytest.raises(Refused, match="clock"):
        tokens(b"callee", clock=clock).admit(b"caller", DOOR, token)


def test_a_token_that_was_let_in_is_remembered_as_long_as_it_counts_and_no_longer() -> None:
    clock = Clock()
    caller, callee = tokens(b"caller", clock=clock), tokens(b"callee", clock=clock)
    for _ in range(1000):
        token = caller.ask(b"callee", DOOR)
        callee.admit(b"caller", DOOR, token)
        clock.now += 1.0
        with pytest.raises(Refused):
            callee.admit(b"caller", DOOR, token)
    assert len(callee._seen) <= 2 * WINDOW_S + 1


@given(st.lists(st.tuples(st.integers(0, 400), st.sampled_from([b"one", b"other"])), max_size=200))
def test_nobody_asks_more_often_than_allowed_and_nobody_for_another(asked: list[tuple[int, bytes]]) -> None:
    clock = Clock()
    rates = Rates(at_once=5, per_s=2.0, clock=clock)
    let_in: dict[bytes, list[float]] = {b"one": [], b"other": []}
    for pause_ms, caller in asked:
        clock.now += pause_ms / 1000
        try:
            rates.admit(caller)
        except Refused:
            of_all = [at for at in let_in[caller] if at > clock.now - 3.0]
            assert len(of_all) >= 5, "it was refused after less than it may"
        else:
            let_in[caller].append(clock.now)
    for times in let_in.values():
        for first, at in enumerate(times):
            inside = [other for other in times[first:] if other <= at + 10.0]
            assert len(inside) <= 5 + 2.0 * (inside[-1] - at) + 1e-6


@given(st.binary(max_size=2 * TOKEN_BYTES))
def test_what_is_no_token_is_refused(token: bytes) -> None:
    with pytest.raises(Refused):
        tokens(b"callee").admit(b"caller", DOOR, token)


@given(st.integers(0, TOKEN_BYTES - 1), st.integers(1, 255))
def test_a_token_that_was_changed_is_refused(place: int, by: int) -> None:
    token = bytearray(tokens(b"caller").ask(b"callee", DOOR))
    token[place] ^= by
    with pytest.raises(Refused):
        tokens(b"callee").admit(b"caller", DOOR, bytes(token))


def test_an_answer_proves_the_secret_too() -> None:
    caller, callee = tokens(b"caller"), tokens(b"callee")
    token = caller.ask(b"callee", DOOR)
    answer = callee.answer(b"caller", DOOR, token, b"answer") + b"answer"
    assert caller.check(b"callee", DOOR, token, answer) == b"answer"
    forged = tokens(b"callee", OTHER).answer(b"caller", DOOR, token, b"answer") + b"answer"
    for wrong in (b"", b"answer", answer[:-1], answer + b"x", forged):
        with pytest.raises(Refused):
            caller.check(b"callee", DOOR, token, wrong)
    with pytest.raises(Refused):
        caller.check(b"callee", DOOR, caller.ask(b"callee", DOOR), answer)


@pytest.mark.parametrize("text", ["", "12", "x" * 64, "0" * 63, "0" * 66])
def test_what_is_no_secret_is_one_line_that_does_not_show_it(text: str) -> None:
    with pytest.raises(UserError, match=r"^a secret has 64 hexadecimal digits$"):
        Secret.parse(text)


def test_a_secret_is_read_again_and_not_shown() -> None:
    secret = Secret.new()
    assert Secret.parse(f" {secret.text()}\n") == secret != Secret.new()
    assert secret.text() not in f"{secret} {secret!r}"


class PeerName(bytes):
    """As hivemind's PeerID."""

    def to_bytes(self) -> bytes:
        return bytes(self)

    def to_base58(self) -> str:
        return self.decode()


class Wires:
    """What a peer's daemon does, for peers of one process."""

    def __init__(self) -> None:
        self.handlers: dict[str, Any] = {}
        self.recorded: list[bytes] = []

    async def add_unary_handler(self, proto: str, handler: Any, balanced: bool) -> None:
        self.handlers[proto] = handler

    async def call_unary_handler(self, callee: PeerName, proto: str, content: bytes) -> bytes:
        self.recorded.append(content)
        answer: bytes = await self.handlers[proto](content, PeerName(b"caller"))
        return answer


def test_a_request_and_its_answer_go_through_closed_doors_and_a_strangers_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(P2P, "_ping_daemon", P2P._ping_daemon)
    close_doors(SECRET)
    wires = Wires()

    def client(name: bytes, secret: Secret) -> ClosedClient:
        return ClosedClient(wires, tokens(name, secret))

    async def answer(request: bytes, caller: PeerName) -> bytes:
        return request.upper() + b" of " + caller

    async def talk() -> None:
        await client(b"callee", SECRET).add_unary_handler(DOOR, answer)
        callee = PeerName(b"callee")
        assert await client(b"caller", SECRET).call_unary_handler(callee, DOOR, b"hello") == b"HELLO of caller"
        for request in (b"hello", wires.recorded[0]):  # a plain client's, and one that was recorded
            with pytest.raises(Refused):
                await wires.call_unary_handler(callee, DOOR, request)
        with pytest.raises(Refused):
            await client(b"caller", OTHER).call_unary_handler(callee, DOOR, b"hello")

    asyncio.run(talk())
    assert [each.partition(": ")[0] for each in refusals()] == ["peer caller was refused"] * 3
