"""The members of a swarm as one peer sees them. Peers with the same view compute the same groups."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, ConfigDict, Field, ValidationError
from pydantic import dataclasses as checked

from ray_gossip.gossip.consensus import SUMMARY_BYTES, Distance, relative_distance

MOST_AHEAD = 2**20  # rounds, twelve days of one a second: who says that it is farther ahead is not believed
_LAST = 2**52  # a round beyond that is none; of one's own there is room for more
MOST_INDEX = 10**7  # no swarm has had so many peers, one after the other
MOST_NOTE_BYTES = 48 * 1024  # a record of the DHT has 64 KB at most
_Number = Annotated[int, Field(ge=-1, lt=2**53)]
_Stretch = Annotated[int, Field(ge=1, le=1000)]
_Word = Annotated[str, Field(max_length=300)]
REFRESH_S = 0.5  # a view of the members younger than this is not read again


def _is_whole(summary: bytes) -> bytes:
    if len(summary) not in (0, SUMMARY_BYTES):
        raise ValueError("a summary of another length")
    return summary


@checked.dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True, extra="forbid"))
class Member:
    """One peer as the swarm sees it."""

    peer_id: Annotated[str, Field(min_length=1, max_length=100)]  # libp2p, base58
    peer_index: Annotated[int, Field(ge=0, le=MOST_INDEX)]
    incarnation: _Number = 0  # of those that have this index one after the other, only the latest counts
    node: _Word = ""  # peers with the same node share a machine
    from_round: _Number = 0  # first round in which it counts
    round: _Number = -1  # the last one that it began
    local_step: _Number = 0  # at which it began that round
    summary: Annotated[bytes, AfterValidator(_is_whole)] = b""  # consensus control: of its parameters as it began that
    stretch: _Stretch = 1  # consensus control: the intervals that it would let pass between two rounds
    left: bool = False
    has_own_data: bool = False  # samples are dealt to the others only
    began_as: _Word = ""  # a digest of the model with which it began
    data: _Word = ""  # a digest of the samples that it knows; empty: it has its own
    note: Annotated[bytes, Field(max_length=MOST_NOTE_BYTES)] = b""  # what its samplers tell those of others

    @property
    def name(self) -> str:
        return f"peer-{self.peer_index:02d}"

    def to_wire(self) -> dict[str, Any]:
        """For the DHT, which keeps it under the peer's id."""
        fields = asdict(self)
        del fields["peer_id"]
        return fields

    @classmethod
    def from_wire(cls, peer_id: str, wire: Any) -> Member | None:
        """None when the record was not written by this program: the DHT takes records from anyone."""
        try:
            return cls(**{**wire, "peer_id": peer_id})
        except (TypeError, ValidationError):
            return None


@dataclass(frozen=True)
class View:
    """The members that one peer knows of at one moment, sorted so that all peers number them alike."""

    members: tuple[Member, ...] = ()

    def at(self, round: int, *, is_final: bool = False) -> tuple[Member, ...]:
        """The members that count in this round: in a final one, all."""
        return tuple(member for member in self.present if is_final or member.from_round <= round)

    @property
    def present(self) -> tuple[Member, ...]:
        """The members that have not left."""
        return tuple(member for member in self.members if not member.left)

    @property
    def latest_round(self) -> int:
        return max((member.round for member in self.present), default=-1)

    @property
    def local_step(self) -> int:
        """How far the swarm's training has come."""
        return max((member.local_step for member in self.present), default=0)

    @property
    def distance(self) -> Distance | None:
        """How far the swarm was apart as the latest round began of which at least half of the members say."""
        for round in sorted({member.round for member in self.present if member.summary}, reverse=True):
            members = self.at(round)
            summaries = [member.summary for member in members if member.round == round and member.summary]
            if len(summaries) >= max(2, len(members) / 2):
                return Distance(round, relative_distance(summaries, num_peers=len(members)))
        return None

    @property
    def stretch(self) -> int:
        """The median of what the members propose: those that differ for a moment find back to the others."""
        values = sorted(member.stretch for member in self.present)
        return values[len(values) // 2] if values else 1


@dataclass(frozen=True)
class Neighbours:
    """What a peer knows of the others, for whoever takes the place of its sidecar."""

    addresses: tuple[str, ...]  # multiaddrs at which those are connected that are
    members: tuple[Member, ...]
    refused: tuple[str, ...] = ()  # what was refused at closed doors lately, as sentences


def median_round(members: Iterable[Member]) -> int:
    """Where at least half of those are that have begun a round, and not left; 0: nobody has."""
    rounds = sorted(member.round for member in members if member.round >= 0 and not member.left)
    return rounds[(len(rounds) - 1) // 2] if rounds else 0


def believable(members: Iterable[Member], *, furthest: int) -> list[Member]:
    """Those that are in a round in which a swarm can be: whoever is farther ahead would take all the others along.

    Args:
        furthest: the latest round in which the swarm can be. It is not for its members to say: one peer can declare as
            many as it likes.
    """
    return [member for member in members if max(member.round, member.from_round) <= min(furthest, _LAST)]


class Roster(NamedTuple):
    """Peer indices, in order."""

    present: tuple[int, ...] = ()  # of all members that count
    takers: tuple[int, ...] = ()  # of those of them to which the swarm's samples are dealt

    @classmethod
    def of(cls, members: Iterable[Member]) -> Roster:
        members = list(members)
        return cls(
            present=tuple(sorted({member.peer_index for member in members})),
            takers=tuple(sorted({member.peer_index for member in members if not member.has_own_data})),
        )


def donors(view: View, own: str) -> list[str]:
    """Peer ids of the members to ask for a model, one after the other: those that have come furthest first, because one
    that stands still may have nothing but an old one; those that are as far in any order."""
    others = [member for member in view.present if member.peer_id != own]
    random.shuffle(others)
    return [member.peer_id for member in sorted(others, key=lambda member: -member.local_step)]
