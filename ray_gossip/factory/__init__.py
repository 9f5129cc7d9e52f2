"""Functions of the user's own: that make a model, a data set or an optimizer, named in the config or handed over as
they are; and that tell a loss or another measure of a batch.

A mistake is one line that names what is missing. What can be seen without running the user's code is seen before
anything starts; the rest where the function is called, which is in every peer, or in a rehearsal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ray_gossip.config import Config
from ray_gossip.factory.call import (
    Check,
    Factory,
    check_call,
    check_positional,
    find,
    find_function,
    keywords,
    loop_arguments,
    make,
    run,
)
from ray_gossip.factory.source import check_source, names_in

__all__ = [
    "NAMED",
    "Check",
    "Factories",
    "Factory",
    "check",
    "check_call",
    "find",
    "find_function",
    "loop_arguments",
    "make",
    "name_of",
    "names_in",
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
    for key, name, check_parameters in _named(config, factories):
        how(key, name, check_parameters)


def _named(config: Config, factories: Factories) -> Iterator[tuple[str, str, Check]]:
    """Key, name, and the check of its parameters; of the values that are not known yet, any will do."""
    train, optimizer = config.train, config.optimizer
    if config.model.factory is not None and factories.model is None:
        offered = dict.fromkeys(("in_shape", "num_outputs", "num_classes"))
        yield _made("model.factory", config.model.factory, config.model.args, offered)
    if config.data.factory is not None and factories.data is None:
        yield _made("data.factory", config.data.factory, config.data.factory_args, {})
    if optimizer.factory is not None:
        args = {**optimizer.args, "params": ()}
        yield _made("optimizer.factory", optimizer.factory, args, {"lr": optimizer.lr})
    of_batches = {"train.loss": train.loss} if ":" in train.loss else {}
    of_batches |= {f"train.metrics.{name}": path for name, path in train.metrics.items()}
    for key, name in of_batches.items():
        yield key, name, partial(check_positional, key, name, takes=CALLED_WITH)
    if train.loop is not None and factories.loop is None:
        yield "train.loop", train.loop, partial(loop_arguments, "train.loop", train.loop, argument=train.loop_args)


def _made(key: str, name: str, args: Mapping[str, Any], offered: Mapping[str, Any]) -> tuple[str, str, Check]:
    return key, name, partial(keywords, key, name, args=args, offered=offered)


def name_of(factory: Factory) -> str:
    """What the config says of a function that was handed over: package.module:function, if it has such a name."""
    place = factory if hasattr(factory, "__qualname__") else type(factory)
    return f"{place.__module__}:{place.__qualname__}"
