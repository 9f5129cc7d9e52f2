"""Calling the user's own functions. Whatever they raise becomes one line that names the key and the place."""

from __future__ import annotations

import difflib
import importlib
import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ray_gossip.errors import ConfigError, UserError

Factory = Callable[..., Any]


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
    keywords = _keywords_of(key, name, found, args=args, offered=offered or {})
    with _told(f"{key}={name}"):
        made = found(**keywords)
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
    found = find(key, name)
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # some that are written in C have none
        return found
    check_positional(key, name, signature, takes=takes)
    return found


def run(key: str, name: str, function: Factory, *arguments: Any) -> Any:
    """Call a function of the user's own. Raises ConfigError for whatever it raises."""
    with _told(f"{key}={name}"):
        return function(*arguments)


def check_call(
    key: str, name: str, *, args: Mapping[str, Any], offered: Mapping[str, Any], takes: Sequence[str] = ()
) -> None:
    """Raise ConfigError if it could not even be called. Imports it; the values of what is offered do not matter."""
    if takes:
        find_function(key, name, takes=takes)
    else:
        _keywords_of(key, name, find(key, name), args=args, offered=offered)


def check_positional(key: str, name: str, signature: inspect.Signature, *, takes: Sequence[str]) -> None:
    """Raise ConfigError if it does not take so many arguments.

    Args:
        takes: their names; in brackets, [config], what a function is called without that needs no argument.
    """
    if takes and takes[0].startswith("[") and not needs_argument(signature):
        return
    try:
        if [word.strip("[]") for word in takes] == ["config"] and len(signature.parameters) > 1:
            raise TypeError("a loop's arguments come in one mapping, not each by its name")
        signature.bind(*takes)
    except TypeError:
        parameters = ", ".join(signature.parameters)
        raise ConfigError(
            f"{key}={name} has the parameters ({parameters}), but is called with ({', '.join(takes).strip('[]')})"
        ) from None


def needs_argument(signature: inspect.Signature) -> bool:
    """It has a parameter without a default."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(each.default is each.empty and each.kind not in kinds for each in signature.parameters.values())


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


def _keywords_of(
    key: str, name: str, factory: Factory, *, args: Mapping[str, Any], offered: Mapping[str, Any]
) -> dict[str, Any]:
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # some that are written in C have none
        return dict(args)
    return keywords(key, name, signature, args=args, offered=offered)


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
