"""Who may talk to the peers of a run: whoever knows its secret.

libp2p proves to both ends of a connection which peer the other is. What a peer cannot know from that is whether the
other belongs to its run: hence a token in front of every request, by HMAC-SHA256 (RFC 2104) with a secret of 32 random
bytes. A token is of one caller, one peer called, one kind of request, one moment and one content: recorded and sent
again, by whomever and to whomever, it is refused. The answer carries proof of the secret, too.

Knows nothing of hivemind: see `hive.doors`.
"""

from __future__ import annotations

import hmac
import secrets
import struct
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from ray_gossip.errors import UserError

_BYTES = 32
VERSION = b"\x01"  # the first byte of a token
_HEAD = struct.Struct("!1s d 16s")  # VERSION, seconds since 1970, nonce
TOKEN_BYTES = _HEAD.size + _BYTES
WINDOW_S = 60.0  # clocks may differ by so much; the DHT asks for less
_AT_ONCE, _PER_S = 1000, 200.0  # requests of one peer; a round has some ten of each other peer of its group
_MOST_CALLERS = 10_000


OPEN = "swarm.open: anybody who can reach a peer can join, read the model and change it"


class Refused(Exception):
    """A request without proof that its sender belongs to this run, or of one that asks too often."""


@dataclass(frozen=True, repr=False)
class Secret:
    """Of one run. Its text is for a file or an environment variable, and appears nowhere else."""

    value: bytes

    def __post_init__(self) -> None:
        if len(self.value) != _BYTES:
            raise UserError(f"a secret has {2 * _BYTES} hexadecimal digits")

    def __repr__(self) -> str:
        return "Secret(...)"

    @classmethod
    def new(cls) -> Secret:
        return cls(secrets.token_bytes(_BYTES))

    @classmethod
    def parse(cls, text: str) -> Secret:
        """Raises UserError, which does not show it."""
        try:
            return cls(bytes.fromhex(text.strip()))
        except ValueError:
            raise UserError(f"a secret has {2 * _BYTES} hexadecimal digits") from None

    def text(self) -> str:
        return self.value.hex()


class Rates:
    """How often each peer may ask: so many times at once, and then so many times a second."""

    def __init__(self, *, at_once: int = _AT_ONCE, per_s: float = _PER_S, clock: Callable[[], float] = time.monotonic):
        self._at_once, self._per_s, self._clock = at_once, per_s, clock
        self._left: OrderedDict[bytes, tuple[float, float]] = OrderedDict()  # of a peer, and when; latest at the end

    def admit(self, caller: bytes) -> None:
        """Raises Refused."""
        now = self._clock()
        left, before = self._left.pop(caller, (float(self._at_once), now))
        left = min(self._at_once, left + (now - before) * self._per_s)
        self._left[caller] = (left - 1 if left >= 1 else left), now
        while len(self._left) > _MOST_CALLERS:
            self._left.popitem(last=False)
        if left < 1:
            raise Refused(f"it asks more than {self._per_s:g} times a second")


class Tokens:
    """Makes one peer's tokens, and checks those of others. In one process; each process of a peer has its own doors.

    Args:
        own: this peer's id.
        clock: in seconds since 1970.
    """

    def __init__(self, secret: Secret, *, own: bytes, clock: Callable[[], float] = time.time) -> None:
        self._key, self._own, self._clock = secret.value, own, clock
        self._rates = Rates()
        self._seen: OrderedDict[bytes, float] = OrderedDict()  # nonces that were let in, and until when they count

    def ask(self, callee: bytes, door: str, content: bytes = b"") -> bytes:
        """What goes before the content of a request."""
        head = _HEAD.pack(VERSION, self._clock(), secrets.token_bytes(16))
        return head + self._proof(b"ask", self._own, callee, door.encode(), head, content)

    def admit(self, caller: bytes, door: str, token: bytes, content: bytes = b"") -> None:
        """Raises Refused, unless this caller knows the secret, asks for the first time, and not too often."""
        if len(token) != TOKEN_BYTES or not token.startswith(VERSION):
            raise Refused("it shows no proof that it belongs to this run")
        head, proof = token[: _HEAD.size], token[_HEAD.size :]
        if not hmac.compare_digest(proof, self._proof(b"ask", caller, self._own, door.encode(), head, content)):
            raise Refused("its secret is not that of this run")
        now = self._clock()
        _, asked_at, nonce = _HEAD.unpack(head)
        if not abs(now - asked_at) <= WINDOW_S:
            raise Refused(
                f"its clock differs by {abs(now - asked_at):.0f} s from this one's, or it repeats what was said"
            )
        while self._seen and next(iter(self._seen.values())) < now:
            self._seen.popitem(last=False)
        if nonce in self._seen:
            raise Refused("it repeats what was said earlier")
        self._rates.admit(caller)
        self._seen[nonce] = now + 2 * WINDOW_S

    def answer(self, caller: bytes, door: str, token: bytes, content: bytes) -> bytes:
        """What goes before the content of the answer to a request that had this token."""
        return self._proof(b"answer", self._own, caller, door.encode(), token, content)

    def check(self, callee: bytes, door: str, token: bytes, answer: bytes) -> bytes:
        """The content of an answer to a request that had this token. Raises Refused."""
        proof, content = answer[:_BYTES], answer[_BYTES:]
        if not hmac.compare_digest(proof, self._proof(b"answer", callee, self._own, door.encode(), token, content)):
            raise Refused("its answer shows no proof that it belongs to this run")
        return content

    def _proof(self, *parts: bytes) -> bytes:
        proof = hmac.new(self._key, digestmod="sha256")
        for part in parts:
            proof.update(len(part).to_bytes(8, "big"))
            proof.update(part)
        return proof.digest()
