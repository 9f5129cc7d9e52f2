"""This peer's share of a data set: of a map-style one by a sampler, of an iterable one by every n-th item."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import asdict, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

from torch.utils.data import IterableDataset, Sampler, get_worker_info

from ray_gossip.data.dealing import MAX_BLOCKS, Block, Deck, note_of
from ray_gossip.errors import UserError
from ray_gossip.loop.shares import Shares

Item = TypeVar("Item")


def deck_of(dataset: Sized, *, founders: int, seed: int, shuffle: bool) -> Deck:
    """Of a map-style data set, to be dealt. Raises UserError."""
    if not isinstance(dataset, Sized):
        kind = type(dataset).__name__
        raise UserError(f"peer.sampler(dataset): a {kind} has no length; for an iterable one, peer.shard_of(...)")
    if not len(dataset):
        raise UserError("peer.sampler(dataset): it has no samples")
    return Deck(len(dataset), founders, seed, shuffle)


class _Given(NamedTuple):
    """A block that was given out."""

    before: int  # samples that had been given before
    block: Block
    offset: int  # at which it was begun
    size: int  # samples from there on


class PeerSampler(Sampler[int]):
    """The indices that this peer is to train on, for a DataLoader. Made by `peer.sampler(dataset)`.

    In each epoch, every sample goes to one of the peers. When one has left or died, what it had not begun goes to the
    others; one that comes takes its part. An iteration ends when there is nothing left for this peer in the epoch; the
    next one is of the next epoch, without waiting for anybody, and begins with what earlier epochs have left over.

    What a peer has begun is told to the others every two seconds: samples of a peer that was killed, since then, are
    seen once more. One that is taken for dead while it lives has seen samples that others see, too.
    """

    def __init__(self, deck: Deck, shares: Shares) -> None:
        self._shares, self._dealing = shares, shares.add(deck)
        self._epoch: int | None = None  # as set
        self._is_known = False
        self._rest: list[int] = []  # of the block in progress
        self._num_given = 0  # samples since it was made, or loaded
        self._iterated_at = (0, 0)  # how many were given, and told of, when this iteration began
        self._given: deque[_Given] = deque(maxlen=2 * MAX_BLOCKS)
        self._offsets: dict[Block, int] = {}  # where to go on in blocks that a saved state has in the middle

    @property
    def epoch(self) -> int:
        """That of the next iteration, 0 for the first."""
        return self._dealing.epoch if self._epoch is None else self._epoch

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is of this epoch, as with DistributedSampler; without it, epochs follow each other."""
        if not isinstance(epoch, int) or epoch < 0:
            raise UserError(f"set_epoch({epoch!r}): give the number of an epoch, 0, 1, ...")
        self._epoch = epoch

    def epochs(self, num_epochs: int) -> Iterator[int]:
        """The epochs up to that one in which there is something for this peer to do: a peer that comes later, or goes
        on from a saved state, begins where the others are. To be iterated once in each.

        Raises:
            UserError: the sampler was not iterated in an epoch.
        """
        self._meet()
        while (epoch := self._dealing.epoch) < num_epochs:
            before = self._num_given
            self.set_epoch(epoch)
            yield epoch
            if self._num_given == before:
                raise UserError("peer.sampler(...).epochs goes on as the sampler is iterated, which it was not")
            if self._dealing.epoch >= num_epochs:
                self._shares.exchange_now()  # somebody may be gone who has left something over

    def __iter__(self) -> Iterator[int]:
        self._meet()
        self._iterated_at = (self._num_given, self._shares.num_told())
        last = self.epoch
        while self._rest or self._begin(last):
            self._num_given += 1
            self._shares.num_given += 1
            yield self._rest.pop()
        self._epoch = None

    def __len__(self) -> int:
        """Samples of an epoch that belong to this peer, as things are."""
        return self._dealing.num_own(self.epoch)

    @property
    def num_seen(self) -> int | None:
        """Samples that the loop has trained on, if it tells of those of this sampler alone. What an earlier iteration
        has left over, as a DataLoader with drop_last does, is passed by. None: nobody knows."""
        given, told = self._iterated_at
        seen = given + self._shares.num_told() - told
        return seen if self._has_given(seen) else None

    def _has_given(self, num_samples: int) -> bool:
        """So many since it was made or loaded, or a few more."""
        return (self._given[0].before if self._given else 0) <= num_samples <= self._num_given

    def state_dict(self, *, seen: int | None = None) -> dict[str, Any]:
        """Its position, and what is known of the others', to be saved: numbers and texts only.

        Args:
            seen: samples that the loop has trained on since the sampler was made or loaded: a DataLoader with
                workers takes some ahead. None: all that were given.

        Raises:
            ValueError: so many were not given, or it is too long ago.
        """
        seen = self._num_given if seen is None else seen
        if not self._has_given(seen):
            raise ValueError(f"state_dict(seen={seen}): {self._num_given} samples were given, the last ones are known")
        offsets = dict(self._offsets)
        for given in self._given:
            if seen < given.before + given.size:
                offsets[given.block] = given.offset + max(0, seen - given.before)
        return asdict(self._dealing.note(without=offsets)) | {
            "offsets": [[*block, offset] for block, offset in offsets.items()]
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there, in a sampler that has just been made. With another number of peers, load what all of the
        earlier ones have saved, one after the other.

        Raises:
            UserError: it is of another data set, or of another seed, or damaged.
        """
        deck = self._dealing.deck
        try:
            note, offsets = note_of(state), {(epoch, block): offset for epoch, block, offset in state["offsets"]}
            for (epoch, block), offset in offsets.items():
                start, end = deck.places(block)
                if epoch < 0 or not 0 <= block < deck.num_blocks or not 0 <= offset < end - start:
                    raise ValueError(f"offset {offset} in block {block} of epoch {epoch}")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"the saved sampler is damaged: {type(error).__name__}: {error}") from error
        if replace(note.deck, founders=deck.founders) != deck:
            raise UserError(f"the saved sampler is of {note.deck}, this one of {deck}: give it the same data and seed")
        self._dealing.learn(replace(note, deck=deck))
        self._offsets |= offsets

    def _meet(self) -> None:
        if not self._is_known:
            self._shares.wait_until_known(self._dealing)
            self._is_known = True

    def _begin(self, last: int) -> bool:
        """One more block, if there is one."""
        block = self._dealing.next(last=last)
        if block is None:
            return False
        self._dealing.begin(block)
        offset = self._offsets.pop(block, 0)
        self._rest = self._dealing.samples(block).tolist()[: offset - 1 if offset else None : -1]
        self._given.append(_Given(self._num_given, block, offset, len(self._rest)))
        return True


class PeerStream(IterableDataset[Item]):
    """Every n-th item of an iterable data set, for one of n peers, and of these every w-th for one of w workers of a
    DataLoader. Made by `peer.shard_of(stream)`, the same stream in every peer. It remembers nothing: when peers
    come or go in the middle, some items may be seen twice or not at all.

    Args:
        members: tells the peer indices of those that are there.
    """

    def __init__(self, stream: Iterable[Item], *, own: int, members: Callable[[], Sequence[int]]) -> None:
        self._stream, self._own, self._members = stream, own, members

    def __iter__(self) -> Iterator[Item]:
        worker = get_worker_info()
        number, of = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for position, item in enumerate(self._stream):
            members = sorted({self._own, *self._members()})
            turn, place = divmod(position, len(members))
            if members[place] == self._own and turn % of == number:
                yield item

    def __getstate__(self) -> dict[str, Any]:
        """For a worker: those that are there now."""
        return {**self.__dict__, "_members": partial(tuple, sorted(self._members()))}
