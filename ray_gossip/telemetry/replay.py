"""A run as its files tell it: the picture that the driver has, or had. Needs neither Ray nor torch, and no driver."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_gossip.config import Config, load
from ray_gossip.errors import ConfigError
from ray_gossip.records import KINDS, Notice, Record, RoundReport
from ray_gossip.telemetry.observer import Observer
from ray_gossip.telemetry.state import SwarmRound, SwarmState, Trouble
from ray_gossip.telemetry.watch import TROUBLE


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What is known of a run from its folder."""

    run_dir: Path
    config: Config
    state: SwarmState
    rounds: list[RoundReport]  # all of them, without sketches, in the order of arrival
    summary: dict[str, Any] | None  # once it has ended
    silent_s: float  # since its driver last wrote

    @property
    def is_abandoned(self) -> bool:
        """It has not ended, and its driver has not written for longer than any peer may be silent."""
        return self.summary is None and self.silent_s > self.config.swarm.silent_s + self.config.train.report_s


def replay(run_dir: Path) -> Replay:
    """Read a run's folder, whether the run goes on or has ended.

    Raises:
        ConfigError: there is no run.
    """
    events = run_dir / "events.jsonl"
    if not events.is_file():
        raise ConfigError(f"{run_dir} holds no run: there is no events.jsonl in it")
    config = load(run_dir / "config.yaml")
    observer, rounds = Observer(config), list[RoundReport]()
    for record in _records(events):
        observer.see(record)
        if isinstance(record, RoundReport):
            rounds.append(record)
    summary = run_dir / "summary.json"
    ended = json.loads(summary.read_text()) if summary.is_file() else None
    if ended is not None:
        observer.state.troubles = {each["kind"]: Trouble(**each) for each in ended["troubles"]}
    return Replay(
        run_dir=run_dir,
        config=config,
        state=observer.state,
        rounds=rounds,
        summary=ended,
        silent_s=max(0.0, time.time() - events.stat().st_mtime),
    )


def _records(events: Path) -> Iterator[Record]:
    """All but what follows from the others, and a line that is being written."""
    with events.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                record = _record(json.loads(line))
                if not (isinstance(record, Notice) and record.text.startswith(TROUBLE)):
                    yield record


def _record(values: dict[str, Any]) -> Record:
    """As the driver wrote it: numbers that are not finite are null there."""
    kind = _KINDS[values.pop("event")]
    for field in dataclasses.fields(kind):
        if field.type == "float" and values.get(field.name) is None:
            values[field.name] = math.nan
        elif isinstance(values.get(field.name), list):
            values[field.name] = tuple(values[field.name])
        elif field.name == "sketch":
            values[field.name] = ()
    record: Record = kind(**values)
    return record


_KINDS = {**KINDS, SwarmRound.__name__: SwarmRound}
