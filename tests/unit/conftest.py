"""Fixtures of several files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch

from ray_gossip.records import Record
from ray_gossip.telemetry import Observer, RunLog
from tests.unit.telemetry_records import Write, a_config


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks as small as in tests train faster on one thread than on several that share busy cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes records as a whole run of four peers; returns the closed log."""

    def of(records: Iterable[Record]) -> RunLog:
        with RunLog(tmp_path / "run", Observer(a_config()), run_id="a-run", started_at=990.0) as log:
            for record in records:
                log.write(record)
        return log

    return of
