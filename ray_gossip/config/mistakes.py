"""A mistake in the config as one line: key, value, what is wrong, and what was meant or what the field is."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def explain(error: ValidationError, schema: type[BaseModel]) -> str:
    """The first mistake, as one line: key, value, what is wrong, and what was meant or what the field is; then the keys
    of the others."""
    mistake, *others = error.errors()
    location = [str(part) for part in mistake["loc"]]
    key = ".".join(location) or "config"
    also = [".".join(map(str, other["loc"])) for other in others]
    also = [other for other in also if not key.startswith(f"{other}.")]  # the list that the mistake is in
    more = f" (wrong as well: {', '.join(also[:_MOST_KEYS])}{', ...' * (len(also) > _MOST_KEYS)})" if also else ""
    if mistake["type"] == "extra_forbidden":
        return f"{_unknown(location, schema)}{more}"
    message = mistake["msg"].removeprefix("Value error, ").removeprefix("Input ")
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    if mistake["type"] == "model_type":
        example = next((known for known in keys(schema) if known.startswith(f"{key}.")), "gossip.group_size")
        return f"{key}={shown(mistake['input'])}: {key} is a section; set a key in it, such as {example}{more}"
    if mistake["type"] == "missing":
        return f"{key} is missing{_help(location, schema)}{more}"
    if mistake["type"] == "value_error":
        return f"{key}: {message}{more}"
    return f"{key}={shown(mistake['input'])} {message}{_help(location, schema)}{more}"


_WORDS = {  # of pydantic's, which knows nothing of YAML
    "a valid tuple": "a list",
    "Tuple should": "should",
    " after validation": "",
    "a valid boolean, unable to interpret input": "true or false",
    "a valid boolean": "true or false",
}
_MOST_KEYS = 5  # that are named in a line


def shown(value: Any) -> str:
    """A value as Python writes it, in one line, and not longer than that."""
    return _short.repr(value)


_short = reprlib.Repr()
_short.maxstring = _short.maxlong = _short.maxother = 80
_short.maxdict = _short.maxlist = _short.maxtuple = 8


def hint(word: str, known: Iterable[str]) -> str:
    """What was meant by a word that is none of these, or which there are."""
    # Compared in lower case: to difflib, "sgd" and "SGD" have nothing in common.
    names = {name.lower(): name for name in known}
    close = [names[match] for match in difflib.get_close_matches(word.lower(), names)]
    return f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(sorted(names.values()))}"


def mistake_in(key: str, schema: type[BaseModel]) -> str | None:
    """What is wrong with a dotted key itself, if anything is."""
    known = keys(schema)
    example = next((each for each in known if each.startswith(f"{key}.")), None)
    if example:
        return f"{key} is a section; name a key in it, such as {example}"
    return None if key in known else _unknown(key.split("."), schema)


def _unknown(location: Sequence[str], schema: type[BaseModel]) -> str:
    if len(location) == 1 and location[0] in keys(schema):  # which has a dot in it
        section, _, name = location[0].partition(".")
        return f"unknown key {location[0]} at the top; in a file it is written {section}: {{{name}: ...}}"
    meant = " or ".join(_meant(location, schema))
    hint = f"did you mean {meant}?" if meant else f"known here: {', '.join(_siblings(location, schema))}"
    return f"unknown key {'.'.join(location)}; {hint}"


def _sections(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    return {
        name: field.annotation
        for name, field in model.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }


def keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key of a schema."""
    sections = _sections(model)
    found: list[str] = []
    for name in model.model_fields:
        found += keys(sections[name], f"{prefix}{name}.") if name in sections else [f"{prefix}{name}"]
    return found


def _section_of(location: Sequence[str], schema: type[BaseModel]) -> type[BaseModel]:
    model = schema
    for part in location[:-1]:
        field = model.model_fields.get(part)
        items = get_args(field.annotation) if field is not None else ()
        model = _sections(model).get(part, next((kind for kind in items if hasattr(kind, "model_fields")), model))
    return model


def _siblings(location: Sequence[str], schema: type[BaseModel]) -> list[str]:
    return list(_section_of(location, schema).model_fields)


def _meant(location: Sequence[str], schema: type[BaseModel]) -> list[str]:
    """Known keys that look like this unknown one: in its section, else in any."""
    *section, name = location
    here = difflib.get_close_matches(name, _siblings(location, schema), n=1)
    if here:
        return [".".join([*section, *here])]
    last_names = {key: key.rpartition(".")[2] for key in keys(schema)}
    anywhere = difflib.get_close_matches(name, set(last_names.values()), n=1)
    return [key for key, last in last_names.items() if last in anywhere]


def _help(location: Sequence[str], schema: type[BaseModel]) -> str:
    field = _section_of(location, schema).model_fields.get(location[-1]) if location else None
    if field is None or not field.description:
        return ""
    text = " ".join(field.description.split()).split(". ")[0].rstrip(".")
    return f" ({text[0].lower()}{text[1:]})" if "Literal" not in str(field.annotation) else ""
