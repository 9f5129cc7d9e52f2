"""Functions of the user's own that make a model or a data set: named in the config, or handed over as they are.

A mistake is one line that names what is missing. What can be seen without running the user's code is seen before
anything starts; the rest where the function is called, which is in every peer.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ray_gossip.config import Config
from ray_gossip.errors import ConfigError

Factory = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Factories:
    """Functions that were handed over in Python; they go before what the config names, which stays pure data."""

    model: Factory | None = None
    data: Factory | None = None


NAMED = Factories()  # all that there are, if any, are named in the config


def check(config: Config, factories: Factories) -> None:
    """Raise ConfigError if a factory that the config names is not there, or has not the parameters that its arguments
    are for. Reads its source; imports nothing but the packages around it."""
    if config.model.factory is not None and factories.model is None:
        offered = {"in_shape": (), "num_classes": 0}  # the values do not matter yet
        _check("model.factory", config.model.factory, args=config.model.args, offered=offered)
    if config.data.factory is not None and factories.data is None:
        _check("data.factory", config.data.factory, args=config.data.factory_args, offered={})


def name_of(factory: Factory) -> str:
    """What the config says of a function that was handed over: package.module:function, if it has such a name."""
    place = factory if hasattr(factory, "__qualname__") else type(factory)
    return f"{place.__module__}:{place.__qualname__}"


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
        ConfigError: it is not there, or cannot be imported because another module is missing, or its parameters are
            others, or what it returns is. What the user's code raises itself goes through as it is.
    """
    made = _call(key, name, factory or _find(key, name), args=args, offered=offered or {})
    if not isinstance(made, returns):
        raise ConfigError(
            f"{key}={name} returned {type(made).__name__}, not a {returns.__module__}.{returns.__qualname__}"
        )
    return made


def _find(key: str, name: str) -> Factory:
    module_name, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"{key}={name}: cannot import {module_name}: {error}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"{key}={name}: there is no {part} in {module_name}{_meant(part, dir(found))}")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{key}={name} cannot be called: it is of type {type(found).__name__}")
    factory: Factory = found
    return factory


def _call(key: str, name: str, factory: Factory, *, args: Mapping[str, Any], offered: Mapping[str, Any]) -> Any:
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # some that are written in C have none
        return factory(**args)
    return factory(**_keywords(key, name, signature, args=args, offered=offered))


def _keywords(
    key: str, name: str, signature: inspect.Signature, *, args: Mapping[str, Any], offered: Mapping[str, Any]
) -> dict[str, Any]:
    keywords = {**{word: value for word, value in offered.items() if word in signature.parameters}, **args}
    try:
        signature.bind(**keywords)
    except TypeError as error:
        section, parameters = key.partition(".")[0], ", ".join(signature.parameters)
        raise ConfigError(f"{key}={name} has the parameters ({parameters}): {error}; see {section}.args") from None
    return keywords


def _check(key: str, name: str, *, args: Mapping[str, Any], offered: Mapping[str, Any]) -> None:
    module_name, _, path = name.partition(":")
    try:
        module = importlib.util.find_spec(module_name)  # imports the packages around it
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{key}={name}: cannot find {module_name}: {error}; {_LOOKED}") from error
    if module is None:
        raise ConfigError(f"{key}={name}: there is no module {module_name}; {_LOOKED}")
    tree = _parsed(module)
    function, names = path.partition(".")[0], _defined(tree)
    if names is not None and function not in names:
        raise ConfigError(f"{key}={name}: there is no {function} in {module.origin}{_meant(function, names)}")
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == path and not node.decorator_list:
            _keywords(key, name, _signature(node.args), args=args, offered=offered)


_LOOKED = "looked in the folder of the command, on PYTHONPATH and among what is installed"


def _parsed(module: Any) -> ast.Module:
    """A module's source; of one that has none, nothing can be said before it runs."""
    source = module.loader.get_source(module.name) if hasattr(module.loader, "get_source") else None
    try:
        return ast.parse("from elsewhere import *" if source is None else source)
    except SyntaxError as error:
        raise ConfigError(f"{module.origin}, line {error.lineno}: {error.msg}") from None


def _defined(tree: ast.Module) -> set[str] | None:
    """Names that a module may define, as far as can be seen before it runs; None: any."""
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case ast.alias(name=name, asname=asname):
                names.add(asname or name.partition(".")[0])
    return None if names & {"*", "__getattr__"} else names


def _signature(arguments: ast.arguments) -> inspect.Signature:
    """What `inspect.signature` will say, but for annotations and the values of defaults."""
    none, kind = inspect.Parameter.empty, inspect.Parameter
    kinds = [kind.POSITIONAL_ONLY] * len(arguments.posonlyargs) + [kind.POSITIONAL_OR_KEYWORD] * len(arguments.args)
    positional = [*arguments.posonlyargs, *arguments.args]
    has_default = [False] * (len(positional) - len(arguments.defaults)) + [True] * len(arguments.defaults)
    parameters = [
        kind(argument.arg, kind_of, default=None if optional else none)
        for argument, kind_of, optional in zip(positional, kinds, has_default, strict=True)
    ]
    if arguments.vararg is not None:
        parameters.append(kind(arguments.vararg.arg, kind.VAR_POSITIONAL))
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        parameters.append(kind(argument.arg, kind.KEYWORD_ONLY, default=none if default is None else None))
    if arguments.kwarg is not None:
        parameters.append(kind(arguments.kwarg.arg, kind.VAR_KEYWORD))
    return inspect.Signature(parameters)


def _meant(name: str, known: set[str] | list[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
