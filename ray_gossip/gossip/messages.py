"""What peers say to each other, as bytes. Whatever comes is one of these messages, or `Malformed`: types, sizes and
numbers are looked at, and nothing is built from it but plain values."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple, TypeVar

import msgpack
from pydantic import Field, TypeAdapter, ValidationError

_LARGEST = 2**63  # beyond any number that is meant; TensorBoard takes no larger ones
_MOST_LETTERS, _MOST_ITEMS = 2**20, 100_000

_Words = Annotated[str, Field(max_length=1000)]
_PeerId = Annotated[str, Field(min_length=1, max_length=100)]
_Size = Annotated[int, Field(ge=0)]
_Round = Annotated[int, Field(ge=-1)]
_Wait = Annotated[float, Field(ge=0, le=1e7)]  # seconds
_Group = Annotated[tuple[_PeerId, ...], Field(max_length=10_000)]
_Stage = tuple[bool, _Round, Annotated[int, Field(ge=0, le=1000)]]


class Malformed(ValueError):
    """What came is no such message."""


class Arriving(NamedTuple):
    """I come to the meeting of this group, which you host."""

    stage: _Stage
    group: _Group
    excuse: _Words
    anchor: int
    due_in_s: _Wait
    wait_s: _Wait


class Gathered(NamedTuple):
    """These average together."""

    present: _Group
    absent: dict[_PeerId, _Words]
    anchors: tuple[int, ...]
    ahead: _Round
    moved_to: Annotated[str, Field(max_length=100)]


class Asking(NamedTuple):
    """Are you coming to this stage? I may call you to it."""

    stage: _Stage
    calls: bool


class Answering(NamedTuple):
    """Why I am not coming, where I am instead, and whether I host your group myself."""

    reason: _Words
    round: _Round
    hosts: bool


class Described(NamedTuple):
    """A tensor that comes."""

    name: _Words
    dtype: Annotated[str, Field(max_length=50)]  # as torch calls it
    shape: Annotated[tuple[_Size, ...], Field(max_length=64)]


class Offered(NamedTuple):
    """The model that I give you, which comes in chunks behind this."""

    local_step: _Size
    is_current: bool
    layout: _Words
    num_elements: _Size
    rest: tuple[Described, ...]
    memory: tuple[Described, ...]


Message = TypeVar("Message", Arriving, Gathered, Asking, Answering, Offered)
_FORMS: dict[Any, TypeAdapter[Any]] = {
    form: TypeAdapter(form) for form in (Arriving, Gathered, Asking, Answering, Offered)
}


def to_wire(message: Any) -> bytes:
    packed: bytes = msgpack.packb(message)
    return packed


def from_wire(form: type[Message], wire: bytes) -> Message:
    """Raises Malformed."""
    try:
        message: Message = _FORMS[form].validate_python(plain(wire), strict=True)
    except ValidationError as error:
        raise Malformed(f"{form.__name__}: {error.errors()[0]['msg']}") from None
    return message


def plain(wire: bytes) -> Any:
    """Numbers, words, bytes, tuples and dictionaries of them: nothing else is made of what comes. In words, what a
    terminal would obey is a question mark. Raises Malformed."""
    try:
        value = msgpack.unpackb(
            wire,
            use_list=False,
            max_str_len=_MOST_LETTERS,
            max_array_len=_MOST_ITEMS,
            max_map_len=_MOST_ITEMS,
            max_ext_len=0,
        )
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise Malformed(f"it cannot be unpacked: {error}") from None
    return _plain(value)


def _plain(value: Any) -> Any:
    match value:
        case str():
            return value if value.isprintable() else "".join(map(_readable, value))
        case int() if not -_LARGEST <= value < _LARGEST:
            raise Malformed("a number is too large")
        case dict():
            return {_plain(key): _plain(item) for key, item in value.items()}
        case tuple():
            return tuple(map(_plain, value))
    return value


def _readable(letter: str) -> str:
    return letter if letter.isprintable() or letter in "\n\t" else "?"
