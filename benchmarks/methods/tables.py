"""What `compare.py` found, as tables: for the screen and for the page in `docs/benchmarks`."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from methods.catalogue import CONDITIONS, METHODS

ALONE = "no communication"
TARGET = 0.97  # of the best final accuracy of any method: time is measured to this accuracy

Row = dict[str, Any]


class Table(NamedTuple):
    header: list[str]
    rows: list[list[str]]
    missing: dict[str, str]  # method -> why it has no row, or what became of it


def table_of(condition: str, rows: Sequence[Row]) -> Table:
    """Of one condition; means over the seeds, with deviations."""
    mine = [row for row in rows if row["condition"] == condition]
    done = [row for row in mine if not row["why_not"]]
    header, lines = _rates(done) if CONDITIONS[condition].counts_samples else _trainings(done)
    return Table(header, lines, {row["method"]: said for row in mine if (said := row["why_not"] or row["ended"])})


def _trainings(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    target = TARGET * max((row["marks"][-1]["merged"] for row in rows), default=0.0)
    lines = []
    for name, own in by_method(rows):
        last = [row["marks"][-1] for row in own]
        lines.append(
            [
                name,
                mean(statistics.fmean(mark["own"]) for mark in last),
                mean(min(mark["own"]) for mark in last),
                mean(mark["merged"] for mark in last),
                mean(reached(row["marks"], target, "seconds") for row in own),
                mean(reached(row["marks"], target, "samples") for row in own),
                mean(reached(row["marks"], target, "megabytes") for row in own),
                mean(row["seconds"] for row in own),
                mean(row["samples_per_s"] for row in own),
                mean(row["megabytes"] for row in own),
                mean(row["start_s"] for row in own),
                mean(row["memory_mb"] for row in own),
            ]
        )
    accuracies = ["accuracy", "of the worst", "of the mean"]
    speeds = [f"s to {target:.3f}", "samples to it", "MB to it", "s in all", "samples/s"]
    return ["", *accuracies, *speeds, "MB sent", "s to start", "MB a process"], lines


def _rates(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    alone = [row["samples_per_s"] for row in rows if row["method"] == ALONE]
    lines = []
    for name, own in by_method(rows):
        rates = [row["samples_per_s"] for row in own]
        share = f"{statistics.fmean(rates) / statistics.fmean(alone):.3f}" if alone else "-"
        lines.append([name, mean(rates), share, mean(row["memory_mb"] for row in own)])
    return ["", "samples/s", f"of {ALONE}", "MB a process"], lines


def reached(marks: Sequence[Row], target: float, what: str) -> float | None:
    """Seconds, samples or megabytes until the processes' own models are that good on average; between two marks, on a
    straight line. None: they never are, or it is not known."""
    at_before, before = 0.0, 0.0
    for mark in marks:
        own = statistics.fmean(mark["own"])
        if mark[what] is None:
            return None
        if own >= target:
            share = (target - before) / (own - before)
            return float(at_before + share * (mark[what] - at_before))
        at_before, before = mark[what], own
    return None


def by_method(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    found = {name: [row for row in rows if row["method"] == name] for name in METHODS}
    return [(name, own) for name, own in found.items() if own]


def mean(values: Iterable[float | None]) -> str:
    """With the deviation, where there are several."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    deviation = f" ± {statistics.stdev(known):.2g}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.3g}{deviation}"
