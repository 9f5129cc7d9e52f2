"""This peer's part of a data set, for a script that hands its data over to a trainer before the trainer joins."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from functools import partial
from typing import Any

from torch.utils.data import IterableDataset, Subset

from ray_gossip.errors import UserError
from ray_gossip.loop.sampler import PeerStream
from ray_gossip.loop.session import current


def shard_of(dataset: Any) -> Any:
    """Every n-th sample of a data set, for one of n peers that a driver has started: the same part from the beginning
    to the end, so that the lengths are right that schedules of the learning rate are made from. In a script that no
    driver has started, and for one peer, the data set as it is.

    A loop of one's own has `peer.sampler(dataset)`, which deals anew when peers come or go: here, the part of a peer
    that is lost is not seen any more.

    Returns:
        A `torch.utils.data.Subset`; of an iterable one, an `IterableDataset`, whose length is not known; of a Hugging
        Face `datasets.Dataset`, its own `shard`.

    Raises:
        UserError: it is no data set, or has fewer samples than there are peers.
    """
    session = current()
    if session is None:
        return dataset
    session.is_dealt, num_peers = True, session.num_peers
    if num_peers == 1:
        return dataset
    own = session.peer_index % num_peers  # of one that has joined later
    if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized):
        if not isinstance(dataset, Iterable):
            raise UserError(f"shard_of(dataset): a {type(dataset).__name__} has neither a length nor an iterator")
        return PeerStream(dataset, own=own, members=partial(range, num_peers))
    if len(dataset) < num_peers:
        raise UserError(f"shard_of(dataset): it has {len(dataset)} samples, and there are {num_peers} peers")
    if type(dataset).__module__.partition(".")[0] == "datasets":
        return dataset.shard(  # type: ignore[attr-defined]
            num_shards=num_peers, index=own, contiguous=False
        )
    return Subset(dataset, range(own, len(dataset), num_peers))  # type: ignore[arg-type]
