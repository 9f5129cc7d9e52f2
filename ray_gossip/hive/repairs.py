"""A defect of hivemind 1.1 that no subclass of ours can reach: mended where hivemind is imported.

`ControlClient` reads all answers of the libp2p daemon in one task. An answer that comes in the moment in which its call
is given up (a time-out on a busy machine) finds a cancelled future: the task dies of `InvalidStateError`, unseen, and
from then on the process neither gets an answer nor hears a request, for ever.
"""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

from hivemind.p2p.p2p_daemon_bindings.control import ControlClient


class _AwaitedCalls(dict[UUID, "asyncio.Future[bytes]"]):
    """Calls by id, in which only those are found that still wait for an answer."""

    def __contains__(self, call_id: object) -> bool:
        return super().__contains__(call_id) and not self[call_id].done()  # type: ignore[index]


def mend_late_answers() -> None:
    """From now on an answer that nobody waits for is passed over, as hivemind meant it to be."""
    if ControlClient.__init__ is not _init:
        ControlClient.__init__ = _init


_original_init = ControlClient.__init__


def _init(self: Any, *args: Any, **options: Any) -> None:
    _original_init(self, *args, **options)
    self._pending_calls = _AwaitedCalls()
