"""All tests here start real peers."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import pytest

from tests.nursery import kept_nursery


@pytest.fixture(scope="session", autouse=True)
def nursery() -> Iterator[None]:
    with kept_nursery():
        yield


@pytest.fixture(scope="session", autouse=True)
def server_of_peers() -> None:
    """The process from which peers are forked has imported the tests, too, and what the first optimizer of a user's own
    loop imports: 1.4 s and 2 s for each peer else."""
    modules = sorted(f"{__package__}.{path.stem}" for path in Path(__file__).parent.glob("[st]*.py"))
    multiprocessing.get_context("forkserver").set_forkserver_preload(["ray_gossip.testing", "torch._dynamo", *modules])
    forkserver.ensure_running()
