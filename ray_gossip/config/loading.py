"""From words, files and nested dicts to a config, and back to YAML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_gossip.config.changes import ONE_OF_TWO
from ray_gossip.config.mistakes import shown
from ray_gossip.config.schema import Config, parse
from ray_gossip.config.text import MOST_BYTES, TextError, read_yaml, write_yaml
from ray_gossip.errors import ConfigError

Tree = dict[str, Any]


def load(path: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file (or none: the defaults) and apply dotted overrides such as `gossip.group_size=2`.

    Raises:
        ConfigError: one line that names the key and the fix.
    """
    tree = load_tree(path, overrides)
    if tree.keys() & {"space", "tune"}:
        raise ConfigError(f"{path or 'this'} is a sweep, with space: or tune: in it; run it with ray-gossip tune")
    return parse(tree)


def load_tree(path: Path | None = None, overrides: Sequence[str] = ()) -> Tree:
    """What `load` parses: plain nested dicts, not checked yet. Raises ConfigError."""
    tree = {} if path is None else _read_file(path)
    changes: Tree = {}
    for override in overrides:
        _merge(changes, _nested(override))
    for section, one, other in ONE_OF_TWO:
        asked, present = changes.get(section), tree.get(section)
        if isinstance(asked, dict) and asked.get(one) is not None and isinstance(present, dict):
            present.pop(other, None)  # the override's clock, say, replaces that of the file
    _merge(tree, changes)
    return tree


def read(source: Config | Mapping[str, Any] | Path | str | None) -> Config:
    """A config in any form in which Python hands it over: itself, nested dicts, a YAML file, or none: the defaults.

    Raises:
        ConfigError: one line that names the key and the fix.
    """
    if isinstance(source, Config):
        return source
    return parse(dict(source)) if isinstance(source, Mapping) else load(None if source is None else Path(source))


def dump(config: Config) -> str:
    """The resolved config as YAML; `load` of it gives the same config."""
    return write_yaml(config.model_dump(mode="json"))


def parse_text(content: bytes, *, called: str) -> Tree:
    """The sections in a YAML text, not checked yet.

    Args:
        called: what a mistake is said to be in, such as a path.

    Raises:
        ConfigError: one line that says where.
    """
    if len(content) > MOST_BYTES:
        raise ConfigError(f"{called} has more than {MOST_BYTES:,} bytes, which no config has; name another file")
    try:
        tree = read_yaml(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{called}, line {line}: this is no UTF-8; save it as UTF-8") from None
    except TextError as error:
        where = called if error.line is None else f"{called}, line {error.line}"
        raise ConfigError(f"{where} is not readable as YAML: {error.problem}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{called} holds {shown(tree)}, but must hold sections such as 'gossip:'")
    return tree


def _read_file(path: Path) -> Tree:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"config file not found: {path}; an override is written key=value") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in it
        raise ConfigError(f"cannot read the config file {path}: {getattr(error, 'strerror', error)}") from None
    return parse_text(content, called=str(path))


def _nested(override: str) -> Tree:
    """`gossip.steps=3` as {"gossip": {"steps": 3}}."""
    key, equals, word = override.partition("=")
    names = key.split(".")
    if not equals or not all(names):
        raise ConfigError(f"cannot read the override {override!r}: write key=value, such as gossip.group_size=2")
    try:
        value = read_yaml(word)
    except TextError as error:
        raise ConfigError(
            f"{key}: cannot read {shown(word)} as YAML: {error.problem}; if a text is meant, put it in quotes"
        ) from None
    for name in reversed(names):
        value = {name: value}
    tree: Tree = value
    return tree


def _merge(tree: Tree, changes: Tree, prefix: str = "") -> None:
    """Change what stands in `tree`; sections are changed key by key, everything else as a whole."""
    for name, value in changes.items():
        key = f"{prefix}{name}"
        if name in tree and isinstance(value, dict):
            if not isinstance(tree[name], dict):
                raise ConfigError(
                    f"{key}={shown(tree[name])} holds no keys, so {key}.{next(iter(value), '')} cannot be set in it"
                )
            _merge(tree[name], value, f"{key}.")
        else:
            tree[name] = value
