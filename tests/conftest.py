"""What all tests have in common."""

from __future__ import annotations

import os
import secrets
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from ray_gossip.secret_file import TEXT

settings.register_profile("ray_gossip", deadline=None)  # a machine under load is normal
settings.load_profile("ray_gossip")


# Of all swarms that tests found without a driver: those that join one need not look for the file.
os.environ.setdefault(TEXT, secrets.token_hex(32))


class FilesThatShare(LoadScopeScheduling):
    """Which tests one process runs, one after the other: those of a file that makes something once for several of its
    tests; every other test is for any process."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return file if _makes_something_once(self.config.rootpath / file) else nodeid


@lru_cache
def _makes_something_once(file: Path) -> bool:
    return "@pytest.fixture(scope=" in file.read_text()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    return FilesThatShare(config, log) if config.getoption("dist") == "loadscope" else None
