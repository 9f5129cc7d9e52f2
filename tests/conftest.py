"""What all tests have in common."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest
from hypothesis import settings

settings.register_profile("ray_gossip", deadline=None)  # a machine under load is normal
settings.load_profile("ray_gossip")


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Tests that use the same fixture of their file run in one process, so that it is made once, with `--dist
    loadgroup`: pytest-xdist has a marker for it, which pytest 9.2 does not see."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        for item in items:
            of_file = [
                name for name in getattr(item, "fixturenames", ()) if hasattr(getattr(item, "module", None), name)
            ]
            item._nodeid += "".join(f"@{item.path.stem}.{name}" for name in of_file[:1])  # type: ignore[attr-defined]
