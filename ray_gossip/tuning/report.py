"""What came of a sweep: a table, pictures, `best.yaml`, `report.json`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table

from ray_gossip import config as configs
from ray_gossip import storage
from ray_gossip.storage import write_atomically
from ray_gossip.telemetry import dump_json
from ray_gossip.tuning import plots
from ray_gossip.tuning.importance import importance
from ray_gossip.tuning.outcome import ENDS, Outcome, pareto, rank, read_outcomes
from ray_gossip.tuning.progress import describe
from ray_gossip.tuning.settings import is_reported, metric_of
from ray_gossip.tuning.sweep import Sweep

Report = dict[str, Any]

_HEADINGS = {"bytes_sent": "MB sent", "bytes_to_target": "MB to target", "train_s": "seconds"}


def write_report(sweep: Sweep, *, place: str, folder: Path) -> Report:
    """Read what Tune and the trials have left at the sweep's place, and write the report into the folder."""
    objectives = sweep.settings.tune.objectives
    outcomes = read_outcomes(place, objectives)
    ranked = rank(outcomes, objectives[0])
    best = next((outcome for outcome in ranked if outcome.metrics.get("local_step")), None)
    front = pareto(outcomes, objectives) if len(objectives) > 1 else []
    text = dump_json(
        {
            "run_dir": place,
            "objectives": objectives,
            "trials": {end: sum(outcome.end == end for outcome in outcomes) for end in ENDS},
            "best": _as_json(best) if best else None,
            "pareto": [outcome.name for outcome in front],
            "importance": importance(sweep, outcomes),
            "ranking": [_as_json(outcome) for outcome in ranked],
        },
        indent=2,
    )
    write_atomically(folder / "report.json", f"{text}\n".encode())
    if best is not None:
        heading = f"# ray-gossip train best.yaml, in {Path.cwd()} if a module of yours is named here\n#\n"
        heading += f"# {best.name} of the sweep: {describe(best.point)}\n"
        write_atomically(folder / "best.yaml", f"{heading}{configs.dump(sweep.config(best.point))}".encode())
    for name, png in plots.draw(sweep, outcomes, best=best, front=front).items():
        write_atomically(folder / name, png)
    report: Report = json.loads(text)
    return report


def print_report(report: Report, *, stream: TextIO) -> None:
    """The end of a sweep, and where to look next."""
    console = Console(file=stream, width=None if stream.isatty() else 160)
    console.print()
    console.print(_table(report))
    counts = ", ".join(f"{count} {end.replace('_', ' ')}" for end, count in report["trials"].items() if count)
    lines = [("trials", f"{counts or 'none'}; * best" + ("; + on the Pareto front" if report["pareto"] else ""))]
    if report["importance"]:
        shares = ", ".join(f"{key} {share:.0%}" for key, share in report["importance"].items())
        lines.append(("matters", f"{shares} of the differences in {report['objectives'][0]}"))
    lines += [("failed", f"{each['trial']}: {each['cause']}") for each in report["ranking"] if each["cause"]]
    folder = report["run_dir"]
    if report["best"] is not None:
        lines.append(("best", shlex.join(["ray-gossip", "train", storage.inside(folder, "best.yaml")])))
    lines += [
        ("files", f"{folder}: report.json, {', '.join(plots.NAMES)}"),
        ("curves", shlex.join(["tensorboard", "--logdir", folder])),
    ]
    stream.write("\n" + "".join(f"{name:<9} {text}\n" for name, text in lines))
    stream.flush()


def _table(report: Report) -> Table:
    keys = list(dict.fromkeys(key for each in report["ranking"] for key in each["values"]))
    own = [] if any(map(is_reported, report["objectives"])) else ["peer_accuracy"]
    columns = list(dict.fromkeys([*map(metric_of, report["objectives"]), *own, "bytes_sent", "train_s"]))
    table = Table(box=None, pad_edge=False)
    for name in ("trial", "end", *(key.removeprefix("gossip.") for key in keys)):
        table.add_column(name, overflow="fold")
    for name in (*columns, "step"):
        table.add_column(_HEADINGS.get(name, name.replace("_", " ")), justify="right")
    for each in report["ranking"]:
        is_best = report["best"] is not None and each["trial"] == report["best"]["trial"]
        table.add_row(
            each["trial"] + "*" * is_best + "+" * (each["trial"] in report["pareto"]),
            each["end"].replace("_", " "),
            *(_cell(each["values"].get(key)) for key in keys),
            *(_metric(name, each["metrics"].get(name)) for name in columns),
            _metric("local_step", each["metrics"].get("local_step")),
            style="bold" if is_best else "red" if each["end"] == "failed" else None,
        )
    return table


def _metric(name: str, value: float | None) -> str:
    if value is not None and name.startswith("bytes"):
        return f"{value / 1e6:.1f}"
    return f"{value:.0f}" if value is not None and name == "local_step" else _cell(value)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _as_json(outcome: Outcome) -> dict[str, Any]:
    return {
        "trial": outcome.name,
        "end": outcome.end,
        "baseline": outcome.baseline,
        "values": outcome.point,
        "metrics": outcome.metrics,
        "num_failures": outcome.num_failures,
        "cause": outcome.cause,
    }
