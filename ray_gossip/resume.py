"""What a run that is resumed goes on from: its records so far, and its latest sound checkpoint."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray_gossip.checkpoints.manifest import Manifest, all_in, deal, latest_sound
from ray_gossip.config import Config
from ray_gossip.errors import ConfigError
from ray_gossip.records import Notice, PeerLeft, Record
from ray_gossip.storage import inside, is_uri
from ray_gossip.telemetry import Summary, recorded, set_earlier_attempt_aside


def place_of(config: Config, run_dir: Path) -> str | None:
    """Where a run's checkpoints lie; None: it makes none."""
    if not config.checkpoint.is_on or config.train.loop is not None or config.engine == "hivemind":
        return None
    if config.checkpoint.place is None:
        return str(run_dir.absolute() / "checkpoints")
    place = inside(config.checkpoint.place, run_dir.absolute().name)
    return place if is_uri(place) else str(Path(place).absolute())


def check_is_free(place: str) -> None:
    """Raise ConfigError where another run has left checkpoints, which the ones of this run would replace."""
    if there := all_in(place):
        raise ConfigError(
            f"{place} already holds checkpoints, of run {there[0].run_id}: go on from them by --resume, or name "
            "another --run-dir or checkpoint.place"
        )


@dataclass(frozen=True, kw_only=True)
class Resumption:
    """Where a run goes on. Without a manifest, it begins."""

    manifest: Manifest | None = None
    place: str | None = None
    records: Sequence[Record] = ()  # of the run so far
    notices: list[str] = field(default_factory=list)

    def peers(self, num_peers: int) -> list[dict[str, Any]]:
        """From what each peer goes on: fields of `checkpoints.saving.Resumed`."""
        if self.manifest is None:
            return []
        is_same = len(self.manifest.peers) == num_peers
        common = {"place": self.place, "mark": self.manifest.mark, "is_same_shard": is_same}
        dealt = deal(self.manifest, num_peers=num_peers)
        return [{**common, "name": file.name, "samples": samples} for file, samples in dealt]

    def departures(self, num_peers: int) -> Iterator[Record]:
        """Of the peers of the run so far that are no longer among so many."""
        now = time.time()
        known = {record.peer_index for record in self.records if record.peer_index >= 0}
        for index in sorted(index for index in known if index >= num_peers):
            yield PeerLeft(peer_index=index, wall_time=now, local_step=self.manifest.mark if self.manifest else 0)

    def told(self) -> Iterator[Notice]:
        """What a person should know of it."""
        for text in self.notices:
            yield Notice(peer_index=-1, wall_time=time.time(), text=text)


def ended(run_dir: Path) -> Summary | None:
    """The summary of a run that has done all its steps; None: it has not, or there is none."""
    try:
        summary: Summary = json.loads((run_dir / "summary.json").read_bytes())
        return summary if summary["model"] and (run_dir / "model.pt").exists() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def resumption(config: Config, run_dir: Path) -> Resumption:
    """Of the run in this folder; where there is none, or it has never saved anything, it begins.

    Raises:
        ConfigError: there are checkpoints, and none of them can be used.
    """
    if not (run_dir / "events.jsonl").exists():
        return Resumption()
    _end_last_line(run_dir / "events.jsonl")
    notices: list[str] = []
    place = place_of(config, run_dir)
    if place is None:
        raise ConfigError(
            "--resume goes on from a checkpoint, and this run makes none: set checkpoint.every_s or .every_steps; with "
            "train.loop and engine=hivemind there are none"
        )
    manifest = latest_sound(place, model=config.model.model_dump(mode="json"), notices=notices)
    if manifest is None and notices:
        raise ConfigError(f"--resume: no checkpoint in {place} can be used: {'; '.join(notices)}; name a new --run-dir")
    if manifest is None:
        set_earlier_attempt_aside(run_dir)
        return Resumption(notices=["there is no checkpoint to go on from: the run begins again"])
    text = f"it goes on from checkpoint {manifest.mark}: {len(manifest.peers)} peers, from local step "
    text += f"{manifest.local_step} on, {manifest.samples:,} samples"
    return Resumption(manifest=manifest, place=place, records=recorded(run_dir), notices=[*notices, text])


def _end_last_line(events: Path) -> None:
    """Of a driver that died while it wrote: what is added begins on a line of its own."""
    with events.open("rb+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
