"""Functions of the user's own: that make a model, a data set or an optimizer, named in the config or handed over as
they are; and that tell a loss or another measure of a batch.

A mistake is one line that names what is missing. What can be seen without running the user's code is seen before
anything starts; the rest where the function is called, which is in every peer, or in a rehearsal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_gossip.config import Config
from ray_gossip.factory.call import (
    Factory,
    check_call,
    check_positional,
    find,
    find_function,
    make,
    needs_argument,
    run,
)
from ray_gossip.factory.source import check_source, names_in

__all__ = [
    "NAMED",
    "Factories",
    "Factory",
    "check",
    "check_call",
    "check_positional",
    "find",
    "find_function",
    "loop_takes",
    "make",
    "name_of",
    "names_in",
    "needs_argument",
    "run",
]

CALLED_WITH = ("outputs", "labels")  # a loss or a metric: what the model gives for a batch, and the batch's labels


@dataclass(frozen=True, kw_only=True)
class Factories:
    """Functions that were handed over in Python; they go before what the config names, which stays pure data."""

    model: Factory | None = None
    data: Factory | None = None
    loop: Factory | None = None  # a training loop, and what it is called with
    loop_config: Any = None


NAMED = Factories()  # all that there are, if any, are named in the config


def check(config: Config, factories: Factories = NAMED, *, how: Callable[..., None] = check_source) -> None:
    """Raise ConfigError if a function that the config names is not there, or has not the parameters that its arguments
    are for.

    Args:
        how: by reading its source, which runs none of it. `check_call` imports it, which may do or raise anything else,
            end this process, or never return.
    """
    for key, name, args, offered in _named(config, factories):
        how(key, name, args=args, offered=offered)
    for key, name, takes in _functions(config, factories):
        how(key, name, args={}, offered={}, takes=takes)


def _functions(config: Config, factories: Factories) -> Iterator[tuple[str, str, Sequence[str]]]:
    """Key and name of what is called by position, and what it is called with."""
    if ":" in config.train.loss:
        yield "train.loss", config.train.loss, CALLED_WITH
    yield from ((f"train.metrics.{name}", path, CALLED_WITH) for name, path in config.train.metrics.items())
    if config.train.loop is not None and factories.loop is None:
        yield "train.loop", config.train.loop, loop_takes(config.train.loop_args)


def loop_takes(argument: Any) -> tuple[str]:
    """What a training loop is called with: with nothing, if it has no parameters and there is nothing to tell."""
    is_empty = argument is None or (isinstance(argument, Mapping) and not argument)
    return ("[config]",) if is_empty else ("config",)


def _named(config: Config, factories: Factories) -> Iterator[tuple[str, str, Mapping[str, Any], Mapping[str, Any]]]:
    """Key, name, arguments, and what it is offered; of the values that are not known yet, any will do."""
    if config.model.factory is not None and factories.model is None:
        yield (
            "model.factory",
            config.model.factory,
            config.model.args,
            dict.fromkeys(("in_shape", "num_outputs", "num_classes")),
        )
    if config.data.factory is not None and factories.data is None:
        yield "data.factory", config.data.factory, config.data.factory_args, {}
    if config.optimizer.factory is not None:
        args = {**config.optimizer.args, "params": ()}
        yield "optimizer.factory", config.optimizer.factory, args, {"lr": config.optimizer.lr}


def name_of(factory: Factory) -> str:
    """What the config says of a function that was handed over: package.module:function, if it has such a name."""
    place = factory if hasattr(factory, "__qualname__") else type(factory)
    return f"{place.__module__}:{place.__qualname__}"
