"""The part of a trainer's callback that knows a swarm: join, report, leave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ray_gossip.errors import UserError
from ray_gossip.loop import LoopPeer, join
from ray_gossip.loop.session import current

PREFIX = "gossip/"  # of what a trainer's own loggers are given


def check_one_device(num: int, how: str) -> None:
    """Raise UserError where a trainer itself divides the work: a peer is one process with one device."""
    if num != 1:
        raise UserError(f"this trainer uses {num} devices or processes, and a peer has one: {how}")


def own_folder() -> str | None:
    """A name, unlike that of any other peer or run, for what a trainer writes; None: it is alone with its files."""
    session = current()
    if session is None or session.num_peers == 1:
        return None
    return f"{session.network.seat.charter.run_id}-peer-{session.peer_index:02d}"


def size_of(batch: Any) -> int | None:
    """Of its first tensor that has samples; None: not known. Lightning's own way iterates whatever can be iterated, and
    an iterator would be empty after that."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else None
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (list, tuple)) else ()
    return next((size for part in parts if (size := size_of(part)) is not None), None)


class Membership:
    """From the beginning of a training to its end; a second training is a new one.

    Args:
        options: of `ray_gossip.join`, for a script that no driver has started.
        how_to_deal: what gives each peer its part of the data, as one would write it there.
    """

    def __init__(self, options: Mapping[str, Any], *, how_to_deal: str) -> None:
        self._options, self._how_to_deal = dict(options), how_to_deal
        self.peer: LoopPeer | None = None

    def begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Join; from now on the optimizer's steps are the peer's.

        Raises:
            UserError, SwarmError: as `join` does.
        """
        if self.peer is not None:  # of a training that has failed
            self.end(agree=False)
        self.peer = join(model, optimizer=optimizer, **self._options)
        session = current()
        if session is not None and session.num_peers > 1 and not session.is_dealt:
            session.say(
                "it trains on the whole data set, as all peers do, and with one seed for all on the same batches: "
                f"{self._how_to_deal} gives each its part"
            )

    def saw(self, samples: int) -> None:
        """Samples in the gradient of the step to come."""
        if self.peer is not None:
            self.peer.saw(samples)

    def report(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Show what the trainer logs, as far as it is numbers.

        Returns:
            What there is to log of this peer's rounds; nothing while there is no peer.
        """
        if self.peer is None:
            return {}
        numbers = {name: value for name, value in metrics.items() if isinstance(value, (int, float))}
        self.peer.report({name: value for name, value in numbers.items() if not name.startswith(PREFIX)})
        return {
            f"{PREFIX}peers": float(self.peer.world_size),
            f"{PREFIX}megabytes_sent": self.peer.bytes_sent / 1e6,
            **{f"{PREFIX}rounds_{outcome}": float(num) for outcome, num in sorted(self.peer.rounds.items())},
        }

    def end(self, *, agree: bool) -> None:
        """Leave, after the final average if `agree`."""
        if self.peer is not None:
            peer, self.peer = self.peer, None
            peer.leave(agree=agree)
