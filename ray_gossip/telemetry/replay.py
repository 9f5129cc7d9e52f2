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
    num_unread: int = 0  # lines of its events that say nothing here: damaged, or of another version

    @property
    def is_abandoned(self) -> bool:
        """It has not ended, and its driver has not written for longer than any peer may be silent."""
        return self.summary is None and self.silent_s > self.config.swarm.silent_s + self.config.train.report_s


def replay(run_dir: Path) -> Replay:
    """Read a run's folder, whether the run goes on or has ended.

    Raises:
        ConfigError: there is no run, or its config or summary cannot be read.
    """
    events = run_dir / "events.jsonl"
    if not events.is_file():
        raise ConfigError(f"{run_dir} holds no run: there is no events.jsonl in it")
    config = config_of(run_dir)
    observer, rounds, num_unread = Observer(config), list[RoundReport](), 0
    for record in _records(events):
        if record is None:
            num_unread += 1
            continue
        observer.see(record)
        if isinstance(record, RoundReport):
            rounds.append(record)
    ended = _summary(run_dir / "summary.json")
    if ended is not None:
        observer.state.troubles = {each["kind"]: Trouble(**each) for each in ended["troubles"]}
    return Replay(
        run_dir=run_dir,
        config=config,
        state=observer.state,
        rounds=rounds,
        summary=ended,
        silent_s=max(0.0, time.time() - events.stat().st_mtime),
        num_unread=num_unread,
    )


def recorded(run_dir: Path) -> list[Record]:
    """What the peers and the driver of a run have told so far, without sketches."""
    return [record for record in _records(run_dir / "events.jsonl") if record is not None]


def config_of(run_dir: Path) -> Config:
    """Raises ConfigError: it cannot be read."""
    file = run_dir / "config.yaml"
    if not file.is_file():
        raise ConfigError(f"{file.parent} holds no run that can be read: there is no config.yaml in it")
    try:
        return load(file)
    except ConfigError as error:
        raise ConfigError(f"{file} cannot be read by this version: {error}") from None


def _summary(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(file.read_bytes())
        found["troubles"], found["model"], found["consensus_distance"]
    except (ValueError, TypeError, KeyError):
        raise ConfigError(f"{file} is damaged: remove it, and the run counts as one that has not ended") from None
    return found


def _records(events: Path) -> Iterator[Record | None]:
    """All but what follows from the others, and a line that is being written; None: a line that says nothing here."""
    with events.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                record = _record(line)
                if not (isinstance(record, Notice) and record.text.startswith(TROUBLE)):
                    yield record


def _record(line: bytes) -> Record | None:
    """As the driver wrote it: numbers that are not finite are null there. What another version adds is left out."""
    try:
        values = json.loads(line)
        kind = _KINDS[values["event"]]
        known = {field.name: field for field in dataclasses.fields(kind)}
        taken = {name: _value(value, known[name]) for name, value in values.items() if name in known}
        record: Record = kind(**{**({"sketch": ()} if "sketch" in known else {}), **taken})
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return record


def _value(value: Any, field: dataclasses.Field[Any]) -> Any:
    if value is None and (field.type == "float" or field.default is None):  # not known would have been left out
        return math.nan
    return tuple(value) if isinstance(value, list) else value


_KINDS = {**KINDS, SwarmRound.__name__: SwarmRound}
