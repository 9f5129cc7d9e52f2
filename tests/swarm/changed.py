"""Sidecars that a test has changed."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from ray_gossip.sidecar import client, program
from ray_gossip.sidecar.wire import Wire


def fork_sidecars(change: Callable[[], None]) -> None:
    """From now on, sidecars of this process are forked here, not in the nursery, and begin with a change of their own
    code."""

    def connect() -> tuple[Wire, int]:
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
        return wire, pid

    client._connect = connect
