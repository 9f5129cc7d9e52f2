"""Calling the user's own functions. Whatever they raise becomes one line that names the key and the place."""

from __future__ import annotations

import difflib
import importlib
import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from ray_gossip.errors import ConfigError, UserError

Factory = Callable[..., Any]
Check = Callable[[inspect.Signature], object]  # raises ConfigError where the parameters are others

_OF_LOOP = ("config",)  # what a training loop is called with


def make(
    key: str,
    name: str,
    factory: Factory | None,
    *,
    returns: type,
    args: Mapping[str, Any],
    offered: Mapping[str, Any] | None = None,
) -> Any:
    """Call a factory with `args`, and with those of `offered` for which it has parameters.

    Args:
        key: of the config, such as model.factory.
        name: what stands there.
        factory: what was handed over; None: `name` is imported.
        returns: what must come back.

    Raises:
        ConfigError: it is not there, or cannot be imported, or its parameters are others, or it raises, or what it
            returns is something else.
    """
    found = factory or find(key, name)
    signature = _signature(found)
    chosen = args if signature is None else keywords(key, name, signature, args=args, offered=offered or {})
    with _told(f"{key}={name}"):
        made = found(**chosen)
    if not isinstance(made, returns):
        raise ConfigError(
            f"{key}={name} returned {type(made).__name__}, not a {returns.__module__}.{returns.__qualname__}"
        )
    return made


def find(key: str, name: str) -> Factory:
    """Import what a config names. Raises ConfigError."""
    module_name, _, path = name.partition(":")
    with _told(f"{key}={name}: cannot import {module_name}"):
        found: Any = importlib.import_module(module_name)
    for part in path.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"{key}={name}: there is no {part} in {module_name}{meant(part, dir(found))}")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{key}={name} cannot be called: it is of type {type(found).__name__}")
    factory: Factory = found
    return factory


def find_function(key: str, name: str, *, takes: Sequence[str]) -> Factory:
    """Import a function that a config names. Raises ConfigError unless it can be called with what it takes, in this
    order."""
    check_call(key, name, partial(check_positional, key, name, takes=takes))
    return find(key, name)


def run(key: str, name: str, function: Factory, *arguments: Any) -> Any:
    """Call a function of the user's own. Raises ConfigError for whatever it raises."""
    with _told(f"{key}={name}"):
        return function(*arguments)


def check_call(key: str, name: str, check: Check) -> None:
    """Import a function that a config names, and have its parameters checked. Raises ConfigError."""
    if (signature := _signature(find(key, name))) is not None:
        check(signature)


def check_positional(key: str, name: str, signature: inspect.Signature, *, takes: Sequence[str]) -> None:
    """Raise ConfigError if it does not take so many arguments."""
    try:
        signature.bind(*takes)
    except TypeError:
        raise _other_parameters(key, name, signature, takes) from None


def loop_arguments(key: str, name: str, signature: inspect.Signature, argument: Any) -> tuple[Any, ...]:
    """What a training loop is called with: one argument, or nothing, if it needs none and there is nothing to tell.

    Args:
        argument: None, {}: nothing to tell.

    Raises:
        ConfigError: it has other parameters, such as one for each name in the argument.
    """
    various = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = signature.parameters.values()
    needs_one = any(each.default is each.empty and each.kind not in various for each in parameters)
    if not needs_one and (argument is None or (isinstance(argument, Mapping) and not argument)):
        return ()
    if len(parameters) > 1:
        raise _other_parameters(key, name, signature, _OF_LOOP)
    check_positional(key, name, signature, takes=_OF_LOOP)
    return (argument,)


def _other_parameters(key: str, name: str, signature: inspect.Signature, takes: Sequence[str]) -> ConfigError:
    parameters = ", ".join(signature.parameters)
    return ConfigError(f"{key}={name} has the parameters ({parameters}), but is called with ({', '.join(takes)})")


def keywords(
    key: str, name: str, signature: inspect.Signature, *, args: Mapping[str, Any], offered: Mapping[str, Any]
) -> dict[str, Any]:
    """What to call it with. Raises ConfigError if it has other parameters."""
    chosen = {**{word: value for word, value in offered.items() if word in signature.parameters}, **args}
    try:
        signature.bind(**chosen)
    except TypeError as error:
        section, parameters = key.partition(".")[0], ", ".join(signature.parameters)
        raise ConfigError(f"{key}={name} has the parameters ({parameters}): {error}; see {section}.args") from None
    return chosen


def meant(name: str, known: set[str] | list[str]) -> str:
    """A hint for somebody who may have meant one of these."""
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _signature(function: Factory) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):  # some that are written in C have none
        return None


@contextmanager
def _told(what: str) -> Iterator[None]:
    """What the user's code raises, sys.exit included, as one line: a peer must not end without a word."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_ours(frame.filename)]
        place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
        raise ConfigError(f"{what}: {type(error).__name__}: {error}{place}") from error


def _is_ours(file: str) -> bool:
    return file.startswith("<frozen") or file in (__file__, importlib.__file__)
