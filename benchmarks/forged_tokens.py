"""Tokens as a stranger may have them, for `stranger.py`. Whatever answer comes to one counts as let in."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from ray_gossip.gossip.admission import TOKEN_BYTES, Secret, Tokens


class Guesses(Tokens):
    """Tokens that prove nothing. Whatever answer comes counts."""

    def ask(self, callee: bytes, door: str, content: bytes = b"") -> bytes:
        return b"\x01" + secrets.token_bytes(TOKEN_BYTES - 1)

    def check(self, callee: bytes, door: str, token: bytes, answer: bytes) -> bytes:
        return answer


class OtherRuns(Tokens):
    """Those of another secret."""

    check = Guesses.check


class Recorded(Tokens):
    """In turn a token of its own that was let in before, and one of a member for another."""

    is_recording = False

    def __init__(self, secret: Secret, *, own: bytes, members: Sequence[bytes]) -> None:
        super().__init__(secret, own=own)
        self._kept: dict[tuple[bytes, str, bytes], bytes] = {}
        self._of_others = [Tokens(secret, own=member) for member in members]
        self._turns = 0

    def ask(self, callee: bytes, door: str, content: bytes = b"") -> bytes:
        if self.is_recording:
            self._kept[callee, door, content] = super().ask(callee, door, content)
            return self._kept[callee, door, content]
        self._turns += 1
        if self._turns % 2:
            return self._of_others[self._turns // 2 % len(self._of_others)].ask(callee, door, content)
        return self._kept[callee, door, content]

    check = Guesses.check
