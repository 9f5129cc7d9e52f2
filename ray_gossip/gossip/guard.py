"""A peer whose training has diverged goes on with a neighbour's model, a few times."""

from __future__ import annotations

from collections.abc import Callable

from ray_gossip.causes import DIVERGED
from ray_gossip.errors import DivergedError, SwarmError


class Guard:
    """One peer's.

    Args:
        restore: takes over a neighbour's model; returns whose.
        most: how often, before this peer ends with the cause.
        notices: sentences for a person are added to these.
    """

    def __init__(self, restore: Callable[[], str], *, most: int, notices: list[str]) -> None:
        self._restore, self._most, self._notices = restore, most, notices
        self.count = 0

    def restore(self, why: str) -> None:
        """
        Raises:
            DivergedError: it was restored too often, or nobody has a model to give.
        """
        if self.count == self._most:
            raise DivergedError(f"{why}, after train.max_restores={self._most}: {DIVERGED}: lower optimizer.lr")
        self.count += 1
        try:
            donor = self._restore()
        except SwarmError as error:
            raise DivergedError(f"{why}, and {error}: {DIVERGED}: lower optimizer.lr") from None
        self._notices.append(
            f"{DIVERGED}: {why}; it goes on with the model of {donor}, {self.count} of train.max_restores={self._most}"
        )
