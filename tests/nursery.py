"""The nursery that tests share: each that starts peers would start one of its own, 4 s of CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ray_gossip.sidecar.client import Sidecar


@contextlib.contextmanager
def kept_nursery() -> Iterator[None]:
    """Let it live: it ends when it has no sidecar, and here is one that does nothing."""
    idle = Sidecar()
    try:
        yield
    finally:
        idle.end()
