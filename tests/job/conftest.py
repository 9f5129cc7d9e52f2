"""All tests here start Ray: without a password, in a short folder of their own."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_gossip.resources import this_machine
from tests.job.clusters import start_cluster
from tests.job.preloaded import preloaded
from tests.nursery import kept_nursery


@pytest.fixture(scope="session", autouse=True)
def ray_environment() -> Iterator[None]:
    with (
        # short: the path of a socket holds 107 characters at most
        tempfile.TemporaryDirectory(prefix="rg-", dir="/tmp", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as environment,
    ):
        if (
            signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        ):  # as a shell sets it for what it starts in the background:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # the runs would inherit it
        environment.setenv("RAY_AUTH_MODE", "disabled")
        environment.setenv("RAY_TMPDIR", folder)
        environment.setenv("RAY_prestart_worker_first_driver", "0")  # for nodes that are not started by ray-gossip
        environment.delenv("RAY_ADDRESS", raising=False)
        with kept_nursery(), preloaded(Path(folder)):
            yield


@pytest.fixture(scope="session")
def ray() -> Iterator[str]:
    """The address of a cluster for runs that need not start one of their own, which takes longer than to find it."""
    with start_cluster({"num_cpus": this_machine()["CPU"]}) as cluster:
        yield cluster.address
