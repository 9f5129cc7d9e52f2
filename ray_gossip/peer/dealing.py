"""Which samples are a peer's, as its swarm grows and shrinks."""

from __future__ import annotations

from torch import Tensor

from ray_gossip import data
from ray_gossip.config import Config
from ray_gossip.data import Dataset


class Dealing:
    """The samples as they are dealt to `peers`: a pure function of these, the config and the seed.

    Args:
        founders: peers that begin the swarm.
    """

    def __init__(self, config: Config, dataset: Dataset, *, peer_index: int, founders: int) -> None:
        self._config, self._labels, self._peer_index = config, dataset.train_labels, peer_index
        self.peers = tuple(sorted({*range(founders), peer_index}))  # until the engine knows better

    def shard(self) -> Tensor:
        """This peer's, [num_samples] int64."""
        shards = data.deal(self._labels, len(self.peers), config=self._config.data, seed=self._config.seed)
        return shards[self.peers.index(self._peer_index)]

    def changes_to(self, peers: tuple[int, ...] | None) -> bool:
        """Deal to these from now on; returns whether that makes a difference."""
        if peers is None or peers == self.peers or self._peer_index not in peers:
            return False
        self.peers = peers
        return True
