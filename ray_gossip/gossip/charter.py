"""What a swarm has agreed on, for peers that know only an address of it.

A newcomer learns from it which run this is, and finds out before its first round whether it would average another
model, or compute other groups.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray_gossip.config import Config, meanings
from ray_gossip.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Charter:
    """One swarm: its run, and the settings that all its peers share."""

    run_id: str
    num_peers: int  # started by its driver, with the indices 0..num_peers-1; 1 where each peer was started by itself
    has_driver: bool  # whose peers pass on the records of those that join
    shared: Mapping[str, Any]  # dotted key -> value, as JSON has it

    @classmethod
    def of(cls, config: Config, *, run_id: str, has_driver: bool) -> Charter:
        """The charter of a swarm that begins with this config."""
        return cls(run_id=run_id, num_peers=config.swarm.num_peers, has_driver=has_driver, shared=_shared(config))

    def check(self, config: Config, *, only: tuple[str, ...] = ("",)) -> None:
        """Raise ConfigError when a peer with this config does not fit into the swarm: it names all keys at once.

        Args:
            only: keys that begin otherwise do not count.
        """
        own = _shared(config)
        keys = sorted(key for key in self.shared.keys() | own.keys() if key.startswith(only))
        differing = [key for key in keys if self.shared.get(key) != own.get(key)]
        if differing:
            given = ", ".join(f"{key}={_word(own.get(key))}" for key in differing)
            wanted = " ".join(f"{key}={_word(self.shared.get(key))}" for key in differing)
            raise ConfigError(f"this peer has {given}, but the swarm that it joins has other values; give {wanted}")

    def to_wire(self) -> str:
        return json.dumps([self.run_id, self.num_peers, self.has_driver, self.shared])


def _shared(config: Config) -> dict[str, Any]:
    values = config.model_dump(mode="json")
    return {key: _look_up(values, key) for key, meaning in meanings(Config).items() if meaning.shared}


def _look_up(values: Mapping[str, Any], key: str) -> Any:
    section, _, name = key.rpartition(".")
    return values[section][name] if section else values[name]


def _word(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
