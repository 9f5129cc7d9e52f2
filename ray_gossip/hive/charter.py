"""The swarm's charter in its DHT, where every member keeps it."""

from __future__ import annotations

import contextlib
import json
import re
import time
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

import hivemind
from hivemind.utils import ValueWithExpiration, get_dht_time

from ray_gossip.errors import SwarmError
from ray_gossip.gossip.charter import Charter

CHARTER_KEY = "ray_gossip.charter"  # one DHT, one swarm
_TTL_S = 60.0
_POLL_S = 0.2
_RUN_ID = re.compile(r"[\w.-]{1,200}", re.ASCII)  # which becomes the name of a folder


async def declare_charter(dht: hivemind.DHT, charter: Charter) -> None:
    """Store it for the next minute."""
    await dht.store(CHARTER_KEY, value=charter.to_wire(), expiration_time=get_dht_time() + _TTL_S, return_future=True)


def read_charter(dht: hivemind.DHT, *, within_s: float) -> Charter:
    """The charter of the swarm that this DHT belongs to.

    Raises:
        SwarmError: there is none, the DHT does not answer, or it was not written by this program.
    """
    deadline = time.monotonic() + within_s
    while (record := look_up(dht, CHARTER_KEY, within_s=max(_POLL_S, deadline - time.monotonic()))) is None:
        if time.monotonic() > deadline:
            raise SwarmError(f"no swarm of ray_gossip was found behind this address within {within_s:g} s")
        time.sleep(_POLL_S)
    charter = _read(record.value)
    if charter is None:
        raise SwarmError("the swarm behind this address speaks another version of ray_gossip")
    return charter


def _read(wire: Any) -> Charter | None:
    with contextlib.suppress(TypeError, ValueError, RecursionError):
        match json.loads(wire):
            case [str(run_id), int(num_peers), bool(has_driver), dict(shared)] if _RUN_ID.fullmatch(run_id):
                return Charter(run_id=run_id, num_peers=num_peers, has_driver=has_driver, shared=shared)
    return None


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
