"""Outer momentum on group means: DiLoCo within a group."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class OuterMomentum:
    """SGD with momentum on the pseudo-gradient anchor - group mean, one per peer.

    The anchor is where the peer stood after its last averaged round. A round that was not averaged takes no
    step: the anchor stays, and the next pseudo-gradient holds the progress since. Same arithmetic as
    `torch.optim.SGD(momentum=..., nesterov=...)`, in the anchor's dtype.

    With small groups use Nesterov: heavy ball diverges in pairs (`outer_contraction`).

    References:
        Douillard et al., DiLoCo, https://arxiv.org/abs/2311.08105.
        Kolehmainen et al., NoLoCo, https://arxiv.org/abs/2506.10911: pairs, with one more term.
    """

    def __init__(self, anchor: NDArray[Any], *, lr: float = 0.7, momentum: float = 0.9, nesterov: bool = True) -> None:
        """anchor: the parameters before the first local step, float [size]; copied."""
        self._anchor = anchor.copy()
        self._velocity = np.zeros_like(anchor)
        self._lr, self._momentum, self._nesterov = lr, momentum, nesterov

    def restart(self, anchor: NDArray[Any]) -> None:
        """Go on from here [size], where the swarm has just agreed; the velocity stays."""
        self._anchor[:] = anchor

    @property
    def kept(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Anchor and velocity, each [size]: all that is kept between two steps. What is written into them counts."""
        return self._anchor, self._velocity

    def step(self, mean: NDArray[Any], *, begin: int = 0) -> NDArray[Any]:
        """Take one step with the mean of the group's parameters [size], or of those from `begin` on [some].

        Returns their target [some], which is the new anchor: a peer at `snapshot` moves by target - snapshot.
        Two more arrays of all parameters are kept between steps.
        """
        piece = slice(begin, begin + len(mean))
        anchor, velocity = self._anchor[piece], self._velocity[piece]
        gradient = anchor - mean
        velocity *= self._momentum
        velocity += gradient
        direction = gradient + self._momentum * velocity if self._nesterov else velocity
        anchor -= self._lr * direction
        return anchor.copy()
