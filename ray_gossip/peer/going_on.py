"""How a peer goes on from a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

from ray_gossip.checkpoints.saving import Resumed
from ray_gossip.checkpoints.writer import load
from ray_gossip.errors import ConfigError
from ray_gossip.gossip.commands import Commands
from ray_gossip.training.trainer import Trainer
from ray_gossip.training.whole import go_on_from


def go_on(trainer: Trainer, network: Commands, resumed: Resumed, *, dealt_to: Sequence[int]) -> None:
    """From what this peer, or another, has saved; before the first local step, and before it is declared.

    Args:
        dealt_to: peers among which the samples are dealt now.

    Raises:
        ConfigError: that is of another model or optimizer.
        SwarmError: it cannot be read.
    """
    found = load(resumed.place, resumed.mark, resumed.name)
    try:
        is_same_shard = resumed.is_same_shard and found["dealt_to"] == list(dealt_to)
        go_on_from(trainer, found, samples=resumed.samples, is_same_shard=is_same_shard)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        why = "; ".join(map(str.strip, str(error).splitlines()))
        raise ConfigError(f"checkpoint {resumed.mark} is of another model or optimizer: {why}") from error
    network.keep(found["kept"])
