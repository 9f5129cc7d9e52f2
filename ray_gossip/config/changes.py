"""A config with other values of some of its keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ray_gossip.config.mistakes import explain, keys, mistake_in
from ray_gossip.config.schema import Config, parse
from ray_gossip.errors import ConfigError

ONE_OF_TWO = [
    (section, *pair)
    for section, *keys in (
        ("gossip", "steps", "seconds"),
        ("data", "name", "factory"),
        ("model", "name", "factory"),
        ("optimizer", "name", "factory"),
    )
    for pair in (keys, reversed(keys))
]


def replace(config: Config, values: Mapping[str, Any]) -> Config:
    """The same config with other values of dotted keys, such as `{"gossip.group_size": 2}`. Raises ConfigError."""
    return parse(_with(config, values))


def check_key(key: str) -> None:
    """Raise ConfigError unless this dotted key is in the schema, or below one that holds arguments of the user's."""
    holder = key.rpartition(".")[0]
    if holder not in [known for known in keys(Config) if known.endswith("args")]:
        mistake = mistake_in(key, Config)
        if mistake:
            raise ConfigError(mistake)


def check_value(config: Config, key: str, value: Any) -> None:
    """Raise ConfigError if this value of a dotted key is forbidden, whatever the other keys are."""
    try:
        Config.model_validate(_with(config, {key: value}))
    except ValidationError as error:
        names, place = key.split("."), [str(part) for part in error.errors()[0]["loc"]]
        num_common = min(len(names), len(place))
        if names[:num_common] == place[:num_common] and len(place) >= min(2, len(names)):  # less: it is between keys
            raise ConfigError(explain(error, Config)) from None


def _with(config: Config, values: Mapping[str, Any]) -> dict[str, Any]:
    tree = config.model_dump()
    for key, value in values.items():
        *sections, name = key.split(".")
        section = tree
        for part in sections:
            section = section[part]
        section[name] = value
        for *pair, other in ONE_OF_TWO:
            if key == ".".join(pair) and value is not None:
                section.pop(other, None)
    return tree
