"""What all tests have in common."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

settings.register_profile("ray_gossip", deadline=None)  # a machine under load is normal
settings.load_profile("ray_gossip")


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
