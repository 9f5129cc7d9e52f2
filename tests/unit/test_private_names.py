"""ARCHITECTURE.md lists every private name of another library that this one reaches into."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

import ray_gossip

ROOT = Path(ray_gossip.__file__).parent
PUBLIC = {"_exit", "_asdict"}  # of os and of named tuples: documented, whatever they begin with
SECTION = re.compile(r"^## What we reach into$(.*?)(?=^## |\Z)", re.M | re.S)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def trees() -> Iterator[ast.Module]:
    for path in sorted(ROOT.rglob("*.py")):
        yield ast.parse(path.read_text())


def own_names() -> set[str]:
    """Private names that this package defines: functions, classes, variables, attributes of `self`."""
    found = set()
    for tree in trees():
        for node in ast.walk(tree):
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                    found.add(name)
                case ast.Name(id=name, ctx=ast.Store()):
                    found.add(name)
                case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                    found.add(name)
    return {name for name in found if is_private(name)}


def used_of_others() -> set[str]:
    """Private names that are used here and defined elsewhere."""
    found = set()
    for tree in trees():
        for node in ast.walk(tree):
            match node:
                case ast.Attribute(attr=name):
                    found.add(name)
                case ast.ImportFrom(module=str(module), level=0) if not module.startswith("ray_gossip"):
                    found |= {*module.split("."), *(alias.name for alias in node.names)}
    return {name for name in found if is_private(name)} - own_names() - PUBLIC


def attributes(kind: type) -> set[str]:
    """Private methods and attributes that a class defines in its own source."""
    found = set()
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(kind)))):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found.add(name)
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                found.add(name)
    return {name for name in found if is_private(name)}


def all_attributes(kinds: Iterable[type]) -> set[str]:
    return {name for kind in kinds for name in attributes(kind)}


def taken_over() -> set[str]:
    """Private names of other libraries' classes that subclasses here define anew or assign to."""
    found = set()
    for module in pkgutil.walk_packages([str(ROOT)], "ray_gossip."):
        if module.name.endswith("__main__"):
            continue
        for kind in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(kind) and kind.__module__ == module.name:
                others = [base for base in kind.__mro__ if base.__module__.split(".")[0] in ("hivemind", "ray")]
                ours = [base for base in kind.__mro__ if base.__module__.startswith("ray_gossip.")]
                found |= all_attributes(ours) & all_attributes(others)
    return found


def listed() -> set[str]:
    (section,) = SECTION.findall((ROOT.parent / "ARCHITECTURE.md").read_text())
    words = re.findall(r"`([\w.]+)`", section)
    return {part for word in words for part in word.split(".") if is_private(part)}


def test_architecture_lists_the_private_names_of_others_that_are_used_here_and_no_more() -> None:
    used = used_of_others() | taken_over()
    assert used - listed() == set(), "used, but not listed"
    assert listed() - used == set(), "listed, but not used"
