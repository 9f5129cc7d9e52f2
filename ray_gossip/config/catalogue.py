"""The keys of a config for a person to read: values, default, and the text that stands under each in the schema."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ray_gossip.config.mistakes import hint
from ray_gossip.errors import ConfigError

_WIDEST = 100  # characters of a line
_WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false", Path: "folder", NoneType: "unset"}
_BOUNDS = {Ge: ("{} or more", "ge"), Gt: ("above {}", "gt"), Le: ("at most {}", "le"), Lt: ("below {}", "lt")}


def catalogue(schema: type[BaseModel], prefix: str = "") -> str:
    """All keys that begin with the prefix, one under the other.

    Raises:
        ConfigError: there is none.
    """
    fields = dict(_fields(schema))
    chosen = {key: field for key, field in fields.items() if key == prefix or _is_within(key, prefix)}
    if not chosen:
        sections = {key.partition(".")[0] for key in fields}
        raise ConfigError(f"no key begins with {prefix}; {hint(prefix, [*fields] if '.' in prefix else sections)}")
    width = min(_WIDEST, shutil.get_terminal_size().columns)
    return "\n\n".join(_described(key, field, width) for key, field in chosen.items())


def _is_within(key: str, prefix: str) -> bool:
    return not prefix or key.startswith(f"{prefix.rstrip('.')}.") or ("." in prefix and key.startswith(prefix))


def _fields(schema: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in schema.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _fields(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def _described(key: str, field: FieldInfo, width: int) -> str:
    default = field.get_default(call_default_factory=True)
    text = " ".join((field.description or "").split())
    values = ", ".join([_kind(field.annotation), *_bounds(field.metadata)])
    head = f"{key}={_written(default)}" if default is not None else key
    return "\n".join([f"{head}    ({values})", *textwrap.wrap(text, width - 4, **_INDENTED)])


_INDENTED: dict[str, Any] = {
    "initial_indent": "    ",
    "subsequent_indent": "    ",
    "break_on_hyphens": False,
    "break_long_words": False,
}


def _kind(kind: Any) -> str:
    """The values of a type, in words."""
    if get_origin(kind) is Annotated:
        inner, *metadata = get_args(kind)
        found = [each for one in metadata for each in (one.metadata if isinstance(one, FieldInfo) else [one])]
        return ", ".join([_kind(inner), *_bounds(found)])
    if get_origin(kind) is Literal:
        return " | ".join(map(str, get_args(kind)))
    if get_origin(kind) in (Union, UnionType):
        kinds = sorted(get_args(kind), key=lambda each: each is NoneType)
        return " | ".join(map(_kind, kinds))
    if get_origin(kind) is tuple:
        return f"list of: {_kind(get_args(kind)[0])}"
    if get_origin(kind) is dict:
        return "mapping"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return f"mapping of {', '.join(kind.model_fields)}"
    return _WORDS.get(kind, str(getattr(kind, "__name__", kind)))


def _bounds(metadata: list[Any]) -> list[str]:
    return [
        text.format(f"{getattr(bound, name):g}")
        for bound in metadata
        for kind, (text, name) in _BOUNDS.items()
        if isinstance(bound, kind)
    ]


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_written, value))}]"
    return str(value)
