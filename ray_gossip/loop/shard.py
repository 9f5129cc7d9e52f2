"""This peer's part of a data set, for a script that hands its data over to a trainer before the trainer joins."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

from torch.utils.data import Subset

from ray_gossip.errors import UserError
from ray_gossip.loop.session import current


def shard_of(dataset: Any) -> Any:
    """Every n-th sample of a map-style data set, for one of n peers that a driver has started: the same part from the
    beginning to the end, so that the lengths are right that schedules of the learning rate are made from. In a script
    that no driver has started, and for one peer, the data set as it is.

    A loop of one's own has `peer.sampler(dataset)`, which deals anew when peers come or go: here, the part of a peer
    that is lost is not seen any more.

    Returns:
        A `torch.utils.data.Subset`; of a Hugging Face `datasets.Dataset`, its own `shard`.

    Raises:
        UserError: it has no length, or fewer samples than there are peers.
    """
    session = current()
    if session is None:
        return dataset
    num_peers, own = session.config.swarm.num_peers, session.peer_index
    session.is_dealt = True
    if num_peers == 1:
        return dataset
    if not isinstance(dataset, Sized):
        kind = type(dataset).__name__
        raise UserError(f"shard_of(dataset): a {kind} has no length; for an iterable one, peer.shard_of(...)")
    if len(dataset) < num_peers:
        raise UserError(f"shard_of(dataset): it has {len(dataset)} samples, and there are {num_peers} peers")
    own %= num_peers  # of one that has joined later
    if hasattr(dataset, "shard"):
        return dataset.shard(num_shards=num_peers, index=own, contiguous=False)
    return Subset(dataset, range(own, len(dataset), num_peers))  # type: ignore[arg-type]
