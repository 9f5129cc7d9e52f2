"""YAML as it is meant in a config: numbers are decimal, keys are words that stand once, and nothing is endless.

PyYAML follows YAML 1.1, to which 010 is eight, 1:30 is ninety and 1e-3 is a text. The same table of plain words serves
reading and writing, so that what was written is read again as it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import Reader

try:
    from yaml import CSafeDumper as SafeDumper
    from yaml import CSafeLoader as SafeLoader
except ImportError:  # a PyYAML that was built without libyaml
    from yaml import SafeDumper, SafeLoader  # type: ignore[assignment]

MOST_BYTES = 100_000  # of a file: read in a fifth of a second, and longer than any config
_MOST_NODES = 100_000  # after aliases are followed: ten lines of them can stand for a billion
_DEEPEST = 32
_LONGEST_NUMBER = 40  # characters: Python refuses to convert thousands of digits

_TAG = "tag:yaml.org,2002:"
_PLAIN_WORDS = (  # tag, what it looks like, what it may begin with; "" begins the empty word
    ("null", r"~|null|Null|NULL|", [*"~nN", ""]),
    ("bool", r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF", [*"yYnNtTfFoO"]),
    ("int", r"[-+]?(0x[0-9a-fA-F][0-9a-fA-F_]*|0o[0-7][0-7_]*|0b[01][01_]*|[0-9][0-9_]*)", [*"-+0123456789"]),
    ("float", r"[-+]?(\.[0-9]|[0-9])[0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?", [*"-+.0123456789"]),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", [*"-+."]),
)


class TextError(Exception):
    """The text is no YAML, or says what no config can: what is wrong, and the line, counted from 1, where known."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem, line)
        self.problem, self.line = problem, line


def read_yaml(text: str) -> Any:
    """Plain nested dicts, lists and values; keys are strings. Raises TextError."""
    try:
        _check_form(text)
        loader = _Loader(text)
        root = loader.get_single_node()
        _check_keys(root)
        return None if root is None else _copied(loader.construct_document(root), room=[_MOST_NODES])
    except yaml.MarkedYAMLError as error:
        raise TextError(_told(error), error.problem_mark.line + 1 if error.problem_mark else None) from None


def write_yaml(tree: Any) -> str:
    """`read_yaml` of it gives the same tree."""
    written: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False)
    return written


def _check_form(text: str) -> None:
    """Raise TextError for what would take too long to read, or has a type of YAML's own."""
    odd = Reader.NON_PRINTABLE.search(text)
    if odd:
        line = text.count("\n", 0, odd.start()) + 1
        raise TextError(f"the character U+{ord(odd.group()):04X} does not belong in a text", line)
    depth = 0
    events: Iterator[Any] = yaml.parse(text, Loader=_Loader)
    for event in events:
        line = event.start_mark.line + 1
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise TextError(f"brackets or indentation are nested more than {_DEEPEST} deep", line)
        if getattr(event, "tag", None) is not None:
            raise TextError(f"the tag {event.tag} has no meaning here; leave it out", line)


def _check_keys(root: Node | None) -> None:
    """Raise TextError for a key that is there twice: the second would replace the first without a word."""
    nodes, seen = [root], set[int]()
    while nodes:
        node = nodes.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, MappingNode):
            first: dict[str, int] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if isinstance(key, ScalarNode):
                    if key.value in first:
                        raise TextError(f"the key {key.value} is there twice, first in line {first[key.value]}", line)
                    first[key.value] = line
                nodes += [key, value]
        elif isinstance(node, SequenceNode):
            nodes += node.value


def _copied(value: Any, *, room: list[int], depth: int = 0) -> Any:
    """A tree of its own in place of one with aliases, which may even hold itself."""
    room[0] -= 1
    if room[0] < 0 or depth > _DEEPEST:
        raise TextError("its aliases stand for more than can be read; write it out")
    match value:
        case dict():
            return {_word(key): _copied(each, room=room, depth=depth + 1) for key, each in value.items()}
        case list():
            return [_copied(each, room=room, depth=depth + 1) for each in value]
    return value


def _word(key: Any) -> str:
    if isinstance(key, str):
        return key
    raise TextError(f"to YAML, the key {key!r} is no text; put it in quotes")


def _told(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or error.context or "it cannot be read"
    if error.context and error.context_mark and error.problem:
        problem += f", {error.context} that begins in line {error.context_mark.line + 1}"
    return problem


class _Loader(SafeLoader):
    def construct_yaml_int(self, node: ScalarNode) -> int:
        word, line = node.value.replace("_", ""), node.start_mark.line + 1
        if len(word) > _LONGEST_NUMBER:
            raise TextError(f"a number has {len(word)} digits, which is more than {_LONGEST_NUMBER}", line)
        number = int(word, 0 if word.lstrip("+-")[1:2] in ("x", "o", "b") else 10)
        if not -(2**63) <= number < 2**63:
            raise TextError(f"{word} is beyond 64 bits", line)
        return number


class _Dumper(SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


for _side in (_Loader, _Dumper):
    _side.yaml_implicit_resolvers = {}
    for _tag, _pattern, _first in _PLAIN_WORDS:
        _side.add_implicit_resolver(f"{_TAG}{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first)
_Loader.add_constructor(f"{_TAG}int", _Loader.construct_yaml_int)
