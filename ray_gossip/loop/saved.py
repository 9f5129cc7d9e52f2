"""All that a loop's peer goes on from after an interruption: what it is made of, and how it is taken up again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ray_gossip.checkpoints.saving import Resumed
from ray_gossip.checkpoints.writer import load
from ray_gossip.errors import UserError
from ray_gossip.training.memory import follow_parameters, kind_of
from ray_gossip.training.whole import copied, random_states, set_random_states

if TYPE_CHECKING:
    from ray_gossip.loop.sampler import PeerSampler

_PLAIN = (bool, int, float, str, bytes, type(None))


class Saved:
    """What the loop's peer has to do with it.

    Args:
        state: what an earlier process has saved, as `state` has made it; None: nothing.
        samplers: the same of samplers, each by its number, of all earlier peers whose data this one goes on with.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        *,
        state: Mapping[str, Any] | None = None,
        samplers: Sequence[Sequence[Mapping[str, Any]]] = (),
    ) -> None:
        self._model, self._optimizer = model, optimizer
        self._earlier, self._samplers = samplers, list["PeerSampler"]()
        self.local_step = 0  # at which the state was saved
        self.own: dict[str, Any] | None = None  # what the loop itself has added to it
        self.kept: Tensor | None = None  # what averaging had kept
        self._random: Mapping[str, Any] | None = None
        self._hook: Any = None
        if state is not None:
            self._take_up(state)

    @classmethod
    def given(cls, model: nn.Module, optimizer: Optimizer | None, state: Mapping[str, Any]) -> Saved:
        """From what `state` has made.

        Raises:
            UserError: it is none, or of another model or optimizer.
        """
        try:
            return cls(model, optimizer, state=state, samplers=[state["samplers"]])
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"join(resumed=...) is of another model or optimizer: {_line(error)}") from error

    @classmethod
    def of(cls, model: nn.Module, optimizer: Optimizer | None, resumed: Resumed) -> Saved:
        """From a checkpoint.

        Raises:
            UserError: that is of another model or optimizer.
            SwarmError: it cannot be read.
        """
        state = load(resumed.place, resumed.mark, resumed.name)
        samplers = [load(resumed.place, resumed.mark, name)["samplers"] for name in resumed.same_data]
        try:
            if not resumed.is_same_shard:  # others may go on from the same one: not with the same random numbers
                state["random"] = None
            return cls(model, optimizer, state=state, samplers=samplers)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"checkpoint {resumed.mark} is of another model or optimizer: {_line(error)}") from error

    def begin(self) -> None:
        """From here on random numbers are those that the loop would have had; and before its first step, what the
        optimizer remembers is where the model is by then."""
        if self._random is not None:
            set_random_states(self._random)
        if self._optimizer is not None:
            self._hook = self._optimizer.register_step_pre_hook(self._before_first_step)

    def add(self, sampler: PeerSampler) -> None:
        """One more sampler of this peer's: it goes on where those of its number have been saved."""
        number = len(self._samplers)
        self._samplers.append(sampler)
        for states in self._earlier:
            if number < len(states):
                sampler.load_state_dict(states[number])

    def state(
        self,
        own: Mapping[str, Any],
        *,
        local_step: int,
        samples: int,
        is_told: bool,
        kept: Tensor,
        averaged: Sequence[str],
    ) -> dict[str, Any]:
        """A copy in host memory of all that it goes on from.

        Args:
            own: what the loop adds: objects with a `state_dict()`, and what is plain.
            samples: that count as seen by this peer.
            is_told: the loop tells of the samples on which it trains; else all count that its samplers have given.
            kept: what averaging keeps from round to round.
            averaged: names of the model's tensors that are averaged.

        Raises:
            UserError: something in it is neither.
        """
        is_told &= len(self._samplers) == 1  # of which one, nobody knows
        return {
            "local_step": local_step,
            "samples": samples,
            "model": _plain(self._model, "the model"),
            "optimizer": None if self._optimizer is None else _plain(self._optimizer, "the optimizer"),
            "optimizer_kind": None if self._optimizer is None else kind_of(self._optimizer),
            "random": random_states(),
            "kept": kept,
            "averaged": [*averaged],
            "samplers": [each.state_dict(seen=each.num_seen if is_told else None) for each in self._samplers],
            "own": {name: _plain(value, f"checkpoint({name}=...)") for name, value in own.items()},
        }

    def _before_first_step(self, optimizer: Optimizer, *_: Any) -> None:
        self._hook.remove()
        follow_parameters(optimizer)

    def _take_up(self, state: Mapping[str, Any]) -> None:
        kept, random, local_step = state["kept"], state["random"], state["local_step"]
        if not isinstance(kept, Tensor) or type(local_step) is not int or local_step < 0:
            raise ValueError(f"local step {local_step}, and kept a {type(kept).__name__}")
        if random is not None and random.keys() != random_states().keys():
            raise ValueError(f"random numbers of {', '.join(random) or 'nothing'}")
        self._model.load_state_dict(state["model"])
        kind = None if self._optimizer is None else kind_of(self._optimizer)
        if kind is not None and state["optimizer_kind"] not in (None, kind):
            (its, *_), (own, *_) = state["optimizer_kind"].split("."), kind.split(".")
            raise ValueError(f"its optimizer is {its}, and this one {own}, for these parameters")
        if self._optimizer is not None and state["optimizer"] is not None:
            self._optimizer.load_state_dict(state["optimizer"])
        self._random, self.local_step, self.own, self.kept = random, local_step, dict(state["own"]), kept


def _plain(value: Any, called: str) -> Any:
    """What can be read again without running anybody's code. Raises UserError."""
    has_state = hasattr(value, "state_dict") and not isinstance(value, type)
    try:
        found = copied(value.state_dict() if has_state else value)
    except RecursionError:
        raise UserError(f"{called} holds itself") from None
    _check(found, called)
    return found


def _check(value: Any, called: str) -> None:
    if isinstance(value, (Mapping, list)):
        for each in [*value, *value.values()] if isinstance(value, Mapping) else value:
            _check(each, called)
    elif type(value) not in (*_PLAIN, Tensor):
        raise UserError(
            f"{called} holds a {type(value).__name__}, which nothing can be read from again: give something with a "
            "state_dict(), or tensors, numbers, texts, lists and mappings"
        )


def _line(error: Exception) -> str:
    return "; ".join(map(str.strip, (str(error) or type(error).__name__).splitlines()))
