"""ARCHITECTURE.md names the tests that hold each invariant."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
SECTION = re.compile(r"^## Invariants.*?(?=^## )", re.M | re.S)


def test_every_invariant_is_held_by_tests_that_are_there() -> None:
    (section,) = SECTION.findall((TESTS.parent / "ARCHITECTURE.md").read_text())
    rows = [line for line in section.splitlines() if line.startswith("| ")][2:]  # below the head and its rule
    there = {
        name for path in TESTS.rglob("test_*.py") for name in re.findall(r"^ *def (test_\w+)", path.read_text(), re.M)
    }
    assert len(rows) > 10
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named, row
        assert set(named) <= there, set(named) - there
