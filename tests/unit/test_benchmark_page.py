"""The page of the comparison says what its files say."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "benchmarks"


def test_the_page_is_what_the_files_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from page import page

    assert (FOLDER / "README.md").read_text() == page(FOLDER), "write it again: python benchmarks/page.py"
    pictures = [line.partition("](")[2].rstrip(")") for line in page(FOLDER).splitlines() if line.startswith("![")]
    assert pictures
    assert [name for name in pictures if not (FOLDER / name).exists()] == []
