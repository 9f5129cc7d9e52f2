"""Keys that name something of the user's own: `factory` in place of `name`, and its `args`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

from ray_gossip.config.mistakes import shown

_DEEPEST = 32


def name_or_factory(values: Any) -> Any:
    """Where there is a factory, there is no name."""
    if isinstance(values, dict) and values.get("factory") is not None:
        if values.get("name") is not None:
            raise ValueError(f"name={values['name']} and factory={values['factory']} are both set; keep one of them")
        values = {**values, "name": None}
    return values


def check_factory(name: str | None, factory: str | None) -> None:
    """Raise ValueError unless one of them is set, and a factory is named as one."""
    if name is None and factory is None:
        raise ValueError("neither name nor factory is set; set one of them")
    if factory is not None:
        check_function(factory, called="factory=")


def check_function(path: str, *, called: str = "") -> None:
    """Raise ValueError unless it names a function of a module."""
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^:\s]+", path):
        raise ValueError(f"{called}{path} should be package.module:function")


def no_args_without(factory: str | None, args: Mapping[str, Any]) -> None:
    """Raise ValueError if there are arguments and no factory that could take them."""
    if args and factory is None:
        raise ValueError(f"args={shown(args)} are for a factory; set factory, or leave them out")


def _plain(value: Any, *, key: str = "", depth: int = 0) -> Any:
    """What can be written down, sent and compared: as YAML and JSON have it."""
    match value:
        case None | bool():
            return value
        case str() if value == value.encode(errors="ignore").decode():
            return value
        case int() if -(2**63) <= value < 2**63:
            return value
        case float() if math.isfinite(value):
            return value
        case list() | tuple() if depth < _DEEPEST:
            return [_plain(each, key=f"{key}[{index}]", depth=depth + 1) for index, each in enumerate(value)]
        case dict() if depth < _DEEPEST and all(isinstance(_plain(name), str) for name in value):
            return {name: _plain(each, key=f"{key}.{name}", depth=depth + 1) for name, each in value.items()}
    raise ValueError(
        f"{key.lstrip('.') or 'it'}={shown(value)} is no plain value: a finite number, a text, true, false, null, or a "
        "list of these or a mapping from texts to them"
    )


Args = Annotated[dict[str, Any], BeforeValidator(_plain)]
