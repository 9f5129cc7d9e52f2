"""A loop of the user's own under a driver: the swarm that `join` finds there, and where its records go.

One for a process, because a process hosts one peer.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from ray_gossip.checkpoints.saving import Resumed, Saving
from ray_gossip.config import Config
from ray_gossip.records import Notice, Record, Reported
from ray_gossip.sidecar.network import Network

if TYPE_CHECKING:
    import torch

_LONGEST_NAME = 100
_current: Session | None = None


class Stopped(BaseException):
    """The driver has asked this loop to end. No `Exception`, so that a loop that catches those ends all the same."""


@dataclass
class Session:
    """What a loop's peer is given, and what it gives."""

    config: Config
    network: Network  # with a seat in the swarm
    founders: int  # that begin together
    device: torch.device
    node: str
    records: SimpleQueue[Record] = field(default_factory=SimpleQueue)
    stopping: threading.Event = field(default_factory=threading.Event)
    _saves_until: float = -math.inf  # once it is to end: so long it may go on until it has saved itself
    peer: Any = None  # the LoopPeer, once it has joined
    samples: int = 0  # that this peer's processes before this one have seen
    saving: Saving | None = None  # its part in the run's checkpoints; None: the run makes none
    resumed: Resumed | None = None  # from what it goes on; None: it begins
    is_dealt: bool = False  # each peer has its part of the data, as far as this process knows

    @property
    def num_peers(self) -> int:
        """That the driver starts."""
        return self.config.swarm.num_peers

    @property
    def peer_index(self) -> int:
        return self.network.seat.peer_index

    def say(self, text: str) -> None:
        self.records.put(Notice.now(text, peer_index=self.peer_index))

    def report(self, values: dict[str, float], *, local_step: int) -> None:
        """Raises Stopped if the loop is to end."""
        self.check()
        self.records.put(
            Reported(peer_index=self.peer_index, wall_time=time.time(), local_step=local_step, metrics=values)
        )

    def save(self, mark: int) -> None:
        """Ask for this peer's part of a checkpoint, where its loop makes any. From any thread."""
        if self.saving is not None and self.saving.is_used:
            self.saving.ask(mark)

    def stop(self, *, saves_within_s: float = 0.0) -> None:
        """Ask the loop to end. From any thread.

        Args:
            saves_within_s: if it saves itself now and then, it does so once more, and has this long to come to it.
        """
        if self.saving is not None and self.saving.is_used:
            self._saves_until = time.monotonic() + saves_within_s
        self.stopping.set()

    def check(self, *, has_saved: bool = False) -> None:
        """Raise Stopped if the loop is to end."""
        if self.stopping.is_set() and (has_saved or time.monotonic() > self._saves_until):
            raise Stopped("the run is being stopped")

    def checkpoint(self, local_step: int, state: Callable[[], dict[str, Any]]) -> None:
        """Save this peer, if it is time. In the loop's thread, between two local steps.

        Raises:
            Stopped: the loop is to end.
        """
        is_last = self.stopping.is_set()  # asked once: it may change meanwhile
        if self.saving is not None and is_last:
            self.saving.last(state, within_s=self._saves_until - time.monotonic())
        elif self.saving is not None:
            self.saving.after_step(local_step, state)
        self.check(has_saved=is_last)


def current() -> Session | None:
    """That of this process; None: no driver has started it."""
    return _current


@contextlib.contextmanager
def within(session: Session) -> Iterator[None]:
    """Code that runs meanwhile, in any thread, finds this session."""
    global _current
    _current = session
    try:
        yield
    finally:
        _current = None


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics as numbers: of a tensor with one element, that.

    Raises:
        TypeError: a name is no text, or a value is no number.
    """
    if not isinstance(metrics, Mapping):
        raise TypeError(f"report({metrics!r}): give names and numbers, report({{'loss': loss}})")
    found: dict[str, float] = {}
    for name, value in metrics.items():
        if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= _LONGEST_NAME:
            raise TypeError(
                f"report({{{name!r}: ...}}): the name of a metric must be a text of one line, 1 to {_LONGEST_NAME} long"
            )
        try:
            found[name] = float(value.detach() if hasattr(value, "detach") else value)  # torch warns of a gradient
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise TypeError(f"report({{{name!r}: ...}}): {type(value).__name__} is not one number") from None
    return found
