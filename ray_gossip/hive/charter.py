"""What a swarm has agreed on, for those who know only an address of it: kept in its DHT by every member.

A newcomer learns from it which run this is, and finds out before its first round whether it would average another
model, or compute other groups.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Any

import hivemind
from hivemind.utils import ValueWithExpiration, get_dht_time

from ray_gossip.config import Config
from ray_gossip.errors import ConfigError, SwarmError

_KEY = "ray_gossip.charter"  # one DHT, one swarm
_TTL_S = 60.0
_POLL_S = 0.2

# A peer may differ from the others in every other key: that changes its own training, not who meets whom about what.
_SHARED_SECTIONS = ("model", "gossip")
_SHARED_KEYS = (
    "engine",
    "seed",
    "train.local_steps",
    "data.name",
    "data.factory",
    "data.args",
    "data.shards",
    "data.dirichlet_alpha",
    "data.shard_sizes",
)
_OWN_KEYS = ("gossip.alpha", "gossip.min_group_size", "gossip.overlap", "gossip.matchmaking_s", "gossip.allreduce_s")


@dataclass(frozen=True, kw_only=True)
class Charter:
    """One swarm: its run, and the settings that all its peers share."""

    run_id: str
    num_peers: int  # started by its driver, with the indices 0..num_peers-1; 1 where each peer was started by itself
    has_driver: bool  # whose peers pass on the records of those who join
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


async def declare_charter(dht: hivemind.DHT, charter: Charter) -> None:
    """Store it for the next minute."""
    await dht.store(_KEY, value=charter.to_wire(), expiration_time=get_dht_time() + _TTL_S, return_future=True)


def read_charter(dht: hivemind.DHT, *, within_s: float) -> Charter:
    """The charter of the swarm that this DHT belongs to.

    Raises:
        SwarmError: there is none, the DHT does not answer, or it was not written by this program.
    """
    deadline = time.monotonic() + within_s
    while (record := look_up(dht, _KEY, within_s=max(_POLL_S, deadline - time.monotonic()))) is None:
        if time.monotonic() > deadline:
            raise SwarmError(f"no swarm of ray_gossip was found behind this address within {within_s:g} s")
        time.sleep(_POLL_S)
    try:
        match json.loads(record.value):
            case [str(run_id), int(num_peers), bool(has_driver), dict(shared)]:
                return Charter(run_id=run_id, num_peers=num_peers, has_driver=has_driver, shared=shared)
    except (TypeError, ValueError):
        pass
    raise SwarmError("the swarm behind this address speaks another version of ray_gossip")


def look_up(dht: hivemind.DHT, key: str, *, within_s: float) -> ValueWithExpiration[Any] | None:
    """What the DHT holds under a key, from any process but the averager's.

    Raises:
        SwarmError: the DHT does not answer in time; hivemind itself would wait for ever.
    """
    try:
        found: ValueWithExpiration[Any] | None = dht.get(key, latest=True, return_future=True).result(timeout=within_s)
    except (FutureTimeoutError, TimeoutError):
        raise SwarmError(f"the swarm's DHT did not answer within {within_s:g} s") from None
    return found


def _shared(config: Config) -> dict[str, Any]:
    values = config.model_dump(mode="json")
    of_sections = [f"{section}.{key}" for section in _SHARED_SECTIONS for key in values[section]]
    return {key: _look_up(values, key) for key in (*_SHARED_KEYS, *of_sections) if key not in _OWN_KEYS}


def _look_up(values: Mapping[str, Any], key: str) -> Any:
    section, _, name = key.rpartition(".")
    return values[section][name] if section else values[name]


def _word(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
