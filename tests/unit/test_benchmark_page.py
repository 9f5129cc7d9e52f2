"""The page of the comparison says what its files say."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

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


def _rows(name: str, method: str) -> list[dict[str, Any]]:
    found = json.loads((FOLDER / f"{name}.json").read_text())
    return [row for row in found["rows"] if row["method"] == method]


def _accuracy(name: str, method: str) -> float:
    return statistics.fmean(row["marks"][-1]["merged"] for row in _rows(name, method))


def _seconds(name: str, method: str) -> float:
    """To the accuracy that the table names."""
    from methods.catalogue import METHODS
    from methods.tables import TARGET, reached

    accuracy = TARGET * max(row["marks"][-1]["merged"] for each in METHODS for row in _rows(name, each))
    return statistics.fmean(reached(row["marks"], accuracy, "seconds") or 0.0 for row in _rows(name, method))


def test_the_readme_says_what_the_files_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    found = json.loads((FOLDER / "digits.json").read_text())
    rows = {(row["method"], row["condition"]): row for row in found["rows"]}
    readme = " ".join((ROOT / "README.md").read_text().split())
    ours, ddp = (rows[name, "quiet"] for name in ("ours", "DDP"))
    accuracies = [statistics.fmean(row["marks"][-1]["own"]) for row in (ddp, ours)]
    rates = [rows[name, "killed"]["samples_per_s"] for name in ("ours", "no communication")]
    assert f"{accuracies[0]:.3f} against {accuracies[1]:.3f}" in readme
    assert f"sends {ddp['megabytes'] / ours['megabytes']:.0f} times the bytes" in readme
    assert f"at {rates[0] / rates[1]:.3f} of what they do without any communication" in readme
    assert f"{_accuracy('cifar10-jpeg-copy', 'DDP'):.3f} against {_accuracy('cifar10-jpeg-copy', 'ours'):.3f}" in readme
    seconds = {name: _seconds("slow-link", name) for name in ("DDP", "ours")}
    assert f"takes {seconds['DDP']:.0f} s to an accuracy that is reached here after {seconds['ours']:.1f} s" in readme
    assert rows["DDP", "killed"]["ended"].startswith("rank 0 ended")
