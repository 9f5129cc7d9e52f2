"""What can be seen of the user's own functions without running any code of theirs: by reading their source."""

from __future__ import annotations

import ast
import inspect
import sys
import warnings
from functools import lru_cache
from importlib.machinery import ModuleSpec
from itertools import accumulate

from ray_gossip.errors import ConfigError
from ray_gossip.factory.call import Check, meant


def check_source(key: str, name: str, check: Check) -> None:
    """Have the parameters of a function that a config names checked, as far as its source shows them. Raises
    ConfigError, also if it is not there."""
    module_name, _, path = name.partition(":")
    module = _spec(key, name, module_name)
    if module is None:
        return
    tree = _parsed(key, name, module)
    function, names = path.partition(".")[0], _defined(tree)
    if names is not None and function not in names:
        raise ConfigError(f"{key}={name}: there is no {function} in {module.origin}{meant(function, names)}")
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == path and not node.decorator_list:
            check(_signature(node.args))


def names_in(module_name: str) -> set[str] | None:
    """Names that a module may define, as far as can be seen without running it; None: any."""
    module = _spec("import", module_name, module_name)
    return None if module is None else _defined(_parsed("import", module_name, module))


_LOOKED = "looked in the folder of the command, beside the config, on PYTHONPATH and among what is installed"


def _spec(key: str, name: str, module_name: str) -> ModuleSpec | None:
    """Where a module is; None where a package around it looks for modules in its own way.

    `importlib.util.find_spec` would import these packages, and what they do then is anything.
    """
    path: list[str] | None = None  # of the package; None: sys.path
    *packages, _ = accumulate(module_name.split("."), "{}.{}".format)
    for package in packages:
        spec = _found(key, name, package, path)
        source = _parsed(key, name, spec)
        if _sets_path(source):
            return None
        path = list(spec.submodule_search_locations or ())
    return _found(key, name, module_name, path)


def _found(key: str, name: str, module_name: str, path: list[str] | None) -> ModuleSpec:
    loaded = getattr(sys.modules.get(module_name), "__spec__", None)
    finders = (finder.find_spec for finder in sys.meta_path if hasattr(finder, "find_spec"))
    spec = loaded or next((spec for find in finders if (spec := find(module_name, path)) is not None), None)
    if spec is None:
        raise ConfigError(f"{key}={name}: there is no module {module_name}; {_LOOKED}")
    return spec


def _parsed(key: str, name: str, module: ModuleSpec) -> ast.Module:
    """A module's source; of one that has none, nothing can be said before it runs."""
    get_source = getattr(module.loader, "get_source", None)
    try:
        source = get_source(module.name) if get_source is not None else None
        return _tree("from elsewhere import *" if source is None else source)
    except SyntaxError as error:
        line = f", line {error.lineno}" if error.lineno else ""
        raise ConfigError(f"{key}={name}: {module.origin}{line}: {error.msg}") from None
    except (ImportError, ValueError, RecursionError, MemoryError) as error:  # no UTF-8; a NUL; nested too deep
        raise ConfigError(f"{key}={name}: {module.origin} cannot be read: {error}") from None


# A sweep asks for thousands of configs, which name the same few modules.
@lru_cache(maxsize=64)
def _tree(source: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # the process that imports it is told
        warnings.simplefilter("ignore", DeprecationWarning)
        return ast.parse(source)


@lru_cache(maxsize=64)
def _sets_path(tree: ast.Module) -> bool:
    return any(isinstance(node, ast.Name) and node.id == "__path__" for node in ast.walk(tree))


@lru_cache(maxsize=64)
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
