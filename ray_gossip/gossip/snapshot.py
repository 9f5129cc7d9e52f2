"""The model of a peer, copied out between two local steps: for a round, and for newcomers."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ray_gossip.causes import NOT_FINITE
from ray_gossip.errors import SwarmError
from ray_gossip.gossip.handover import Handover
from ray_gossip.gossip.protocols import TrainingState
from ray_gossip.gossip.sharing import Sharing
from ray_gossip.training.memory import memory_of, take_memory

_SHARE_S = 2.0  # a newcomer waits this long for the end of the donor's local step; else it gets the last snapshot


class Snapshot:
    """The averaged part as it was when a round began.

    Args:
        values: float32 [size], in memory that the network side shares.
        usual_step_s: how long a local step usually takes.
    """

    def __init__(self, values: torch.Tensor, *, usual_step_s: Callable[[], float]) -> None:
        self.values = values
        self._usual_step_s, self._sharing = usual_step_s, Sharing()
        self._state: TrainingState | None = None
        self._local_step = 0

    @property
    def state(self) -> TrainingState:
        """What is copied. Not before `of`."""
        assert self._state is not None
        return self._state

    def of(self, state: TrainingState) -> None:
        """From now on, of this one."""
        self._state = state
        self.take(local_step=0)

    def take(self, local_step: int) -> None:
        """Copy the state out, for a round and for newcomers that come while this peer takes no local steps."""
        with self._sharing.lock:
            self.state.read_state(self.values)
            self._local_step = local_step

    def take_over(self, handover: Handover) -> list[str]:
        """Go on from another peer's model; returns the frozen parameters that were others here."""
        frozen = self.state.take_rest(handover.rest)
        if self.state.optimizer is not None:
            take_memory(self.state.optimizer, handover.memory)
        self.state.write_state(handover.state)
        self.take(handover.local_step)
        return frozen

    def share(self, local_step: int) -> None:
        """If a newcomer waits for this peer's model, give it. In the training thread, between two local steps."""
        if self._sharing.is_asked_for:
            fresh = torch.empty_like(self.values)
            self.state.read_state(fresh)
            self._sharing.answer(
                Handover(local_step=local_step, state=fresh, rest=self.state.rest(), memory=self._memory())
            )

    def hand_over(self) -> Handover:
        """This peer's model, for a newcomer: as it is after the present local step; when none ends soon, as it was at
        the last snapshot, without what its optimizer remembers by now. In any other thread.

        Raises:
            SwarmError: it is of no use to others.
        """
        handover = self._sharing.ask(within_s=max(_SHARE_S, 2 * self._usual_step_s()))
        if handover is None:
            rest = self.state.rest()
            with self._sharing.lock:
                state = self.values.clone()
                handover = Handover(local_step=self._local_step, state=state, rest=rest, is_current=False)
        if not handover.state.isfinite().all():
            raise SwarmError(f"its parameters are {NOT_FINITE}")
        return handover

    def _memory(self) -> dict[str, torch.Tensor]:
        return {} if self.state.optimizer is None else memory_of(self.state.optimizer)
