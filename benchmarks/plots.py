"""Pictures of what `compare.py` found, for `page.py`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from methods.tables import ALONE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS = "ours"
COLOUR, OTHERS = "#c2410c", "#64748b"
OURS_COLOURS = {OURS: COLOUR, "ours, all": "#fb923c"}
INCHES = (8.0, 4.2)


def name_of(path: Path, condition: str) -> str:
    return f"{path.stem}-{condition.replace(' ', '-')}.svg"


def draw(path: Path) -> None:
    """One for each condition, beside the file."""
    from matplotlib.figure import Figure

    found: dict[str, Any] = json.loads(path.read_text())
    for name in dict.fromkeys(row["condition"] for row in found["rows"]):
        rows = [row for row in found["rows"] if row["condition"] == name and not row["why_not"]]
        if not rows:
            continue
        figure = Figure(figsize=INCHES, layout="constrained")
        axes = figure.subplots()
        if rows[0]["marks"]:
            _accuracy(axes, rows)
        else:
            _rates(axes, rows)
        settings = found["settings"]
        task = f"{settings['data'] or 'digits'}, {settings['model']}, {settings['peers']} processes"
        axes.set_title(f"{name}: {task}, {1000 * settings['step_s']:g} ms a local step, {found['machine']}", fontsize=9)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        figure.savefig(path.with_name(name_of(path, name)), metadata={"Date": None})


def _methods(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in rows))


def _accuracy(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """Of the processes' own models, over time, mean of the seeds."""
    ends = []
    for method in _methods(rows):
        runs = [row["marks"] for row in rows if row["method"] == method]
        seconds = [statistics.fmean(mark["seconds"] for mark in marks) for marks in zip(*runs, strict=False)]
        own = [statistics.fmean(statistics.fmean(m["own"]) for m in marks) for marks in zip(*runs, strict=False)]
        is_ours = method.startswith(OURS)
        axes.plot(seconds, own, linewidth=2.4 if is_ours else 1.2, color=OURS_COLOURS.get(method), label=method)
        ends.append((seconds[-1], own[-1]))
    axes.set_xlim(0, 1.05 * sorted(ends)[-2 if len(ends) > 2 else -1][0])  # one process takes many times as long
    axes.set_ylim(min(accuracy for _, accuracy in ends) - 0.1, 1.0)
    axes.legend(fontsize=7, frameon=False, loc="lower right")
    axes.set_xlabel("seconds of training", fontsize=8)
    axes.set_ylabel("accuracy of a process's own model", fontsize=8)


def _rates(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """Samples a second, against no communication."""
    rates = {
        method: statistics.fmean(row["samples_per_s"] for row in rows if row["method"] == method)
        for method in _methods(rows)
    }
    most = rates.get(ALONE)
    shown = sorted((name for name in rates if name != ALONE), key=lambda name: rates[name])
    values = [rates[name] / most if most else rates[name] for name in shown]
    bars = axes.barh(shown, values, color=[COLOUR if name.startswith(OURS) else OTHERS for name in shown])
    axes.bar_label(bars, fmt="%.2f", fontsize=8, padding=3)
    axes.set_xlabel(
        "samples a second, of what the processes do without communication" if most else "samples a second", fontsize=8
    )
