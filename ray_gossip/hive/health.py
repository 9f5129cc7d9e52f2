"""Whether the processes that an averager needs still answer: one that is stopped or hung lives, and is of no use."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from hivemind import DHT
from hivemind.p2p import P2P

from ray_gossip.gossip.signals import Pulse

_EVERY_S = 1.0


async def first_silent(dht: DHT, daemon: P2P, *, silent_s: float) -> str:
    """Asks both again and again; returns the name of the first that has not answered for so long.

    Args:
        silent_s: time in which this process stood still itself does not count.
    """
    questions: dict[str, Callable[[], Awaitable[Any]]] = {
        "DHT process": lambda: dht.run_coroutine(_answer, return_future=True),
        "libp2p daemon": daemon.list_peers,
    }
    answers, pulses = dict.fromkeys(questions, 0), {name: Pulse() for name in questions}

    async def ask(name: str) -> None:
        while True:
            await questions[name]()
            answers[name] += 1
            await asyncio.sleep(_EVERY_S)

    asking = [asyncio.create_task(ask(name)) for name in questions]
    try:
        while True:
            await asyncio.sleep(_EVERY_S)
            for name, pulse in pulses.items():
                if pulse.feel(answers[name]) > silent_s:
                    return name
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)  # a daemon that has died raises: silence, here


async def _answer(dht: DHT, node: Any) -> None:
    """In the DHT process."""
