"""The page of the comparison says what its files say."""

from __future__ import annotations

import json
import statistics
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


def test_the_readme_says_what_the_file_says() -> None:
    found = json.loads((FOLDER / "digits.json").read_text())
    rows = {(row["method"], row["condition"]): row for row in found["rows"]}
    readme = " ".join((ROOT / "README.md").read_text().split())
    ours, ddp = (rows[name, "quiet"] for name in ("ours", "DDP"))
    accuracies = [statistics.fmean(row["marks"][-1]["own"]) for row in (ddp, ours)]
    rates = [rows[name, "killed"]["samples_per_s"] for name in ("ours", "no communication")]
    assert f"{accuracies[0]:.3f} against {accuracies[1]:.3f}" in readme
    assert f"sends {ddp['megabytes'] / ours['megabytes']:.0f} times the bytes" in readme
    assert f"at {rates[0] / rates[1]:.3f} of what they do without any communication" in readme
    assert rows["DDP", "killed"]["ended"].startswith("rank 0 ended")
