"""Sidecars that a test has changed."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from typing import Any

from ray_gossip.hive.averager import GossipAverager
from ray_gossip.sidecar import client, program
from ray_gossip.sidecar.wire import Wire


def fork_sidecars(change: Callable[[], None]) -> None:
    """From now on, sidecars of this process are forked here, not in the nursery, and begin with a change of their own
    code."""

    def connect() -> tuple[Wire, int, str | None]:
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            change()
            program.serve(Wire(theirs))
        theirs.close()
        wire = Wire(ours)
        wire.send("hello", file=2)
        wire.receive()
        return wire, pid, None

    client._connect = connect


def fail_in(*commands: str, by: Callable[[], None]) -> None:
    """From now on, each sidecar of this process fails in one of these commands, in this order; then none does."""
    left = iter(commands)

    def connect() -> tuple[Wire, int, str | None]:
        command = next(left, None)
        fork_sidecars(lambda: _change(command, by) if command else None)
        begun = client._connect()
        client._connect = connect
        return begun

    client._connect = connect


def _change(command: str, fail: Callable[[], None]) -> None:
    if command in ("take_seat", "open"):

        def sync(*_: Any, **__: Any) -> None:
            fail()

        setattr(program._Program, command, sync)
    else:

        async def failing(*_: Any, **__: Any) -> None:
            fail()

        setattr(GossipAverager, command, failing)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
