"""Who is in the swarm, without a coordinator: each peer declares itself in the DHT under `<run_id>.members`.

A declaration expires unless renewed: dying needs no announcement, leaving has one. A newcomer states the round from
which it counts, far enough ahead that everybody has seen it by then. All peers with the same view compute the same
groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hivemind.p2p import PeerID
from hivemind.utils import ValueWithExpiration

MEMBER_TTL_S = 15.0  # a dead peer counts as a member for at most this long
REDECLARE_S = 5.0  # three chances to renew a declaration before it expires


@dataclass(frozen=True)
class Member:
    """One peer as the swarm sees it."""

    peer_id: str  # libp2p, base58
    peer_index: int
    from_round: int  # first round in which it counts
    round: int  # the last round that it began
    left: bool = False

    @property
    def name(self) -> str:
        return f"peer-{self.peer_index:02d}"

    def to_wire(self) -> list[Any]:
        return [self.peer_index, self.from_round, self.round, self.left]

    @classmethod
    def from_wire(cls, peer_id: str, wire: Any) -> Member | None:
        """None when the record was not written by this program: the DHT takes records from anyone."""
        match wire:
            case [int(peer_index), int(from_round), int(round), bool(left)]:
                return cls(peer_id, peer_index, from_round, round, left)
        return None


@dataclass(frozen=True)
class View:
    """The members that one peer knows of at one moment, sorted so that all peers number them alike."""

    members: tuple[Member, ...] = ()

    def at(self, round: int) -> tuple[Member, ...]:
        """Who counts in this round."""
        return tuple(member for member in self.members if member.from_round <= round and not member.left)

    @property
    def latest_round(self) -> int:
        return max((member.round for member in self.members if not member.left), default=-1)


def members_key(run_id: str) -> str:
    return f"{run_id}.members"


def read_view(record: ValueWithExpiration[Any] | None, own: Member) -> View:
    """From what the DHT returned, plus this peer's own declaration, which may not have spread yet."""
    members = {own.peer_id: own}
    values = record.value if record is not None and isinstance(record.value, dict) else {}
    for key, entry in values.items():
        peer_id = PeerID(key).to_base58() if isinstance(key, bytes) else ""
        member = Member.from_wire(peer_id, entry.value)
        if member is not None and peer_id not in members:
            members[peer_id] = member
    return View(tuple(sorted(members.values(), key=lambda member: (member.peer_index, member.peer_id))))
