"""Who takes which part of an epoch, dealt without a coordinator, however many peers come and go.

An epoch is an order of the samples, cut into blocks. Each block belongs to one of the peers that are there: every peer
computes by itself to which. When a peer is gone, its blocks go to others and no other block changes hands; when one
comes, it takes its part of everybody's. What has been begun by whom is told to the others, and once begun, a block is
nobody's any more.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MAX_BLOCKS = 4096  # of an epoch: peers tell each other a bit for each
_MAX_BYTES = 1 << 22  # of what another peer tells, once unpacked
_KEPT_ORDERS = 2  # an epoch, and one before it that a peer has left unfinished

Block = tuple[int, int]  # epoch, number in it


@dataclass(frozen=True)
class Deck:
    """What peers have in common that share the samples of a data set."""

    num_samples: int
    founders: int  # peers 0 to founders-1 get equal parts; those that come later get theirs by lot
    seed: int
    shuffle: bool = True

    @property
    def num_blocks(self) -> int:
        return min(self.num_samples, MAX_BLOCKS)

    def order(self, epoch: int) -> Tensor:
        """The samples of an epoch, [num_samples] int64."""
        if not self.shuffle:
            return torch.arange(self.num_samples)
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0]))
        return torch.randperm(self.num_samples, generator=generator)

    def places(self, block: int) -> tuple[int, int]:
        """Where in the order of an epoch a block begins and ends."""
        return block * self.num_samples // self.num_blocks, (block + 1) * self.num_samples // self.num_blocks

    def owners(self, epoch: int, members: Iterable[int]) -> NDArray[np.int64]:
        """The peer index to which each block belongs, [num_blocks].

        Founders have blocks in turn. The blocks of a founder that is not there go to whoever of the others has drawn
        the highest number for it (Thaler and Ravishankar, Using name-based mappings to increase hit rates, 1998). Peer
        j that came later takes each block with probability 1/(j+1) (as in Lamping and Veach, A fast, minimal memory,
        consistent hash algorithm, 2014).
        """
        present = np.array(sorted(members), dtype=np.int64)
        draws = np.stack(
            [np.random.default_rng([self.seed, epoch, index]).random((2, self.num_blocks)) for index in present]
        )
        home = (np.arange(self.num_blocks) + epoch) % self.founders
        owners = np.where(np.isin(home, present), home, present[draws[:, 0].argmax(0)])
        for index, draw in zip(present, draws[:, 1], strict=True):
            if index >= self.founders:
                owners = np.where(draw < 1 / (index + 1), index, owners)
        return owners


@dataclass(frozen=True)
class Note:
    """What a peer tells the others of a deck."""

    deck: Deck
    members: tuple[int, ...]  # among which it deals
    first: int  # every block of the epochs before this one has been begun
    begun: dict[int, str] = field(default_factory=dict)  # by epoch: a bit for each block, in hex


def packed(notes: Iterable[Note], *, most_bytes: int) -> bytes:
    """Of each of a peer's decks. What does not fit are the latest epochs: a peer that is far ahead of others does not
    tell of them yet, and where it leaves by then, their samples are begun once more."""
    told = [asdict(note) for note in notes]
    while len(wire := zlib.compress(json.dumps(told).encode())) > most_bytes:
        begun: dict[int, str] = max((note["begun"] for note in told), key=len)
        if not begun:
            raise ValueError(f"{len(told)} samplers among {len(told[0]['members'])} peers are more than can be told")
        for epoch in sorted(begun)[math.floor(len(begun) * most_bytes / len(wire)) :]:
            del begun[epoch]
    return wire


def unpacked(wire: bytes) -> list[Note]:
    """Nothing when it was not written by `packed`: anyone may write to the DHT."""
    try:
        unpacking = zlib.decompressobj()
        text = unpacking.decompress(wire, _MAX_BYTES)
        return [note_of(each) for each in json.loads(text)]
    except (zlib.error, ValueError, TypeError, KeyError, AttributeError):
        return []


def note_of(wire: Mapping[str, Any]) -> Note:
    """From `asdict` of a note, as JSON keeps it or not.

    Raises:
        ValueError, TypeError, KeyError: it is none.
    """
    deck = wire["deck"]
    numbers = [deck["num_samples"], deck["founders"], deck["seed"], wire["first"], *wire["members"]]
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("not a number")
    begun = {int(epoch): bytes.fromhex(bits).hex() for epoch, bits in wire["begun"].items()}
    return Note(Deck(**deck), tuple(wire["members"]), wire["first"], begun)


class Dealing:
    """A deck as one peer knows it: what it may begin, and what has been begun.

    Args:
        own: this peer's index.
        members: peer indices of those that are there.
    """

    def __init__(self, deck: Deck, *, own: int, members: Iterable[int] = ()) -> None:
        self.deck, self.own = deck, own
        self.members = frozenset({own, *members})
        self.first = 0  # every block of the epochs before has been begun
        self._begun: dict[int, NDArray[np.bool_]] = {}
        self._owned: dict[int, NDArray[np.bool_]] = {}  # by this peer, as long as the members stay
        self._orders: dict[int, Tensor] = {}

    def next(self, *, last: int) -> Block | None:
        """The block that this peer is to begin now: the first of the earliest epoch, up to the last one given."""
        for epoch in range(self.first, last + 1):
            left = self._left(epoch)
            if left.any():
                return epoch, int(left.argmax())
        return None

    @property
    def epoch(self) -> int:
        """The earliest in which there is something for this peer to begin."""
        epoch = self.first
        while not self._left(epoch).any():
            epoch += 1
        return epoch

    def begin(self, block: Block) -> None:
        """Nobody else is to begin it from now on."""
        epoch, number = block
        self._of(epoch)[number] = True
        self._forget()

    def samples(self, block: Block) -> Tensor:
        """What a block consists of, int64."""
        epoch, number = block
        if epoch not in self._orders:
            self._orders = dict(list(self._orders.items())[1 - _KEPT_ORDERS :])
            self._orders[epoch] = self.deck.order(epoch)
        return self._orders[epoch][slice(*self.deck.places(number))]

    def deal_among(self, members: Iterable[int]) -> None:
        """These are the peers that are there, with this one."""
        members = frozenset({self.own, *members})
        if members != self.members:
            self.members, self._owned = members, {}

    def num_own(self, epoch: int) -> int:
        """Samples of an epoch that belong to this peer, as things are."""
        places = [self.deck.places(int(number)) for number in np.flatnonzero(self._own(epoch))]
        return sum(end - start for start, end in places)

    def note(self, *, without: Iterable[Block] = ()) -> Note:
        """For another peer, or for this one later.

        Args:
            without: blocks that count as not begun.
        """
        without = list(without)
        first = min([self.first, *(epoch for epoch, _ in without)])
        begun = {epoch: np.ones(self.deck.num_blocks, dtype=bool) for epoch in range(first, self.first)}
        begun |= {epoch: bits.copy() for epoch, bits in self._begun.items()}
        for epoch, number in without:
            begun[epoch][number] = False
        packed = {epoch: np.packbits(bits).tobytes().hex() for epoch, bits in begun.items()}
        return Note(self.deck, tuple(sorted(self.members)), first, packed)

    def learn(self, note: Note) -> None:
        """What has been begun by others."""
        self.first = max(self.first, note.first)
        for epoch, bits in note.begun.items():
            found = np.unpackbits(np.frombuffer(bytes.fromhex(bits), dtype=np.uint8))[: self.deck.num_blocks]
            if epoch >= self.first and len(found) == self.deck.num_blocks:
                self._of(epoch)[:] |= found.astype(bool)
        self._forget()

    def _forget(self) -> None:
        """The epochs of which every block has been begun."""
        while self.first in self._begun and self._begun[self.first].all():
            self.first += 1
        for epoch in [epoch for epoch in self._begun if epoch < self.first]:
            del self._begun[epoch]

    def _left(self, epoch: int) -> NDArray[np.bool_]:
        own = self._own(epoch)
        return own & ~self._begun[epoch] if epoch in self._begun else own

    def _own(self, epoch: int) -> NDArray[np.bool_]:
        if epoch not in self._owned:
            self._owned = {known: owned for known, owned in self._owned.items() if known >= self.first}
            self._owned[epoch] = self.deck.owners(epoch, self.members) == self.own
        return self._owned[epoch]

    def _of(self, epoch: int) -> NDArray[np.bool_]:
        return self._begun.setdefault(epoch, np.zeros(self.deck.num_blocks, dtype=bool))
