"""Functions of the user's own that make a model, a data set or an optimizer: named in the config, or handed over as
they are.

A mistake is one line that names what is missing. What can be seen without running the user's code is seen before
anything starts; the rest where the function is called, which is in every peer, or in a rehearsal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ray_gossip.config import Config
from ray_gossip.factory.call import Factory, check_call, make
from ray_gossip.factory.source import check_source, names_in

__all__ = ["NAMED", "Factories", "Factory", "check", "check_call", "make", "name_of", "names_in"]


@dataclass(frozen=True, kw_only=True)
class Factories:
    """Functions that were handed over in Python; they go before what the config names, which stays pure data."""

    model: Factory | None = None
    data: Factory | None = None


NAMED = Factories()  # all that there are, if any, are named in the config


def check(config: Config, factories: Factories = NAMED, *, how: Callable[..., None] = check_source) -> None:
    """Raise ConfigError if a factory that the config names is not there, or has not the parameters that its arguments
    are for.

    Args:
        how: by reading its source, which runs none of it. `check_call` imports it, which may do or raise anything else,
            end this process, or never return.
    """
    for key, name, args, offered in _named(config, factories):
        how(key, name, args=args, offered=offered)


def _named(config: Config, factories: Factories) -> Iterator[tuple[str, str, Mapping[str, Any], Mapping[str, Any]]]:
    """Key, name, arguments, and what it is offered; of the values that are not known yet, any will do."""
    if config.model.factory is not None and factories.model is None:
        yield "model.factory", config.model.factory, config.model.args, {"in_shape": (), "num_classes": 0}
    if config.data.factory is not None and factories.data is None:
        yield "data.factory", config.data.factory, config.data.factory_args, {}
    if config.optimizer.factory is not None:
        args = {**config.optimizer.args, "params": ()}
        yield "optimizer.factory", config.optimizer.factory, args, {"lr": config.optimizer.lr}


def name_of(factory: Factory) -> str:
    """What the config says of a function that was handed over: package.module:function, if it has such a name."""
    place = factory if hasattr(factory, "__qualname__") else type(factory)
    return f"{place.__module__}:{place.__qualname__}"
