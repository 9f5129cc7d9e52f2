"""What a run that is resumed goes on from: its records so far, and its latest sound checkpoint."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray_gossip.checkpoints.manifest import Manifest, deal, latest_sound, marks_in
from ray_gossip.config import Config
from ray_gossip.errors import ConfigError
from ray_gossip.records import Notice, Record, RunResumed
from ray_gossip.storage import inside, is_uri
from ray_gossip.telemetry import Summary, config_of, recorded, set_earlier_attempt_aside

CHECKPOINTS = "checkpoints"  # folder in a run's, where checkpoint.place is unset


def place_of(config: Config, run_dir: Path) -> str | None:
    """Where a run's checkpoints lie; None: it makes none."""
    if not config.checkpoint.is_on or config.engine == "hivemind":
        return None
    if config.checkpoint.place is None:
        return str(run_dir.absolute() / CHECKPOINTS)
    place = inside(config.checkpoint.place, run_dir.absolute().name)
    return place if is_uri(place) else str(Path(place).absolute())


def check_is_free(place: str) -> None:
    """Raise ConfigError where another run has left checkpoints, which the ones of this run would replace."""
    if marks_in(place):
        raise ConfigError(
            f"{place} already holds checkpoints: go on from them by --resume, or name another --run-dir or "
            "checkpoint.place"
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
        common = {"place": self.place, "mark": self.manifest.mark}
        return [
            {
                **common,
                "name": share.file.name,
                "samples": share.samples,
                "is_same_shard": share.is_own,
                "same_data": share.same_data,
            }
            for share in deal(self.manifest, num_peers=num_peers)
        ]

    def begins(self, num_peers: int) -> Iterator[Record]:
        """What is to be written first."""
        if self.manifest is not None and self.records:
            at = self.manifest.local_step
            yield RunResumed(peer_index=-1, wall_time=time.time(), local_step=at, num_peers=num_peers)

    def steps(self) -> dict[str, int]:
        """Folder of TensorBoard -> the local step up to which its curves stay."""
        if self.manifest is None:
            return {}
        files = self.manifest.peers
        mean = round(sum(file.local_step for file in files) / len(files))
        return {"swarm": mean, **{f"peer-{file.peer_index:02d}": file.local_step for file in files}}

    def told(self) -> Iterator[Notice]:
        """What a person should know of it."""
        for text in self.notices:
            yield Notice.now(text)


def ended(config: Config, run_dir: Path) -> Summary | None:
    """The summary of a run that has done all its steps; None: it has not, or there is none.

    Raises:
        ConfigError: it has, and this config asks for something else.
    """
    try:
        summary: Summary = json.loads((run_dir / "summary.json").read_bytes())
        if not (summary["model"] and (run_dir / "model.pt").exists()):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    before = config_of(run_dir)
    if before.train != config.train or before.model != config.model or before.data != config.data:
        raise ConfigError(
            f"--resume: the run in {run_dir} has ended, with other values of train, model or data than these; name a "
            "new --run-dir"
        )
    return summary


def resumption(config: Config, run_dir: Path) -> Resumption:
    """Of the run in this folder; where it has never saved anything, it begins again.

    Raises:
        ConfigError: there are checkpoints, and none of them can be used.
    """
    _end_last_line(run_dir / "events.jsonl")
    notices: list[str] = []
    place = place_of(config, run_dir)
    if place is None:
        raise ConfigError(
            "--resume goes on from a checkpoint, and this run makes none: set checkpoint.every_s or .every_steps; with "
            "engine=hivemind there are none"
        )
    if (earlier := place_of(config_of(run_dir), run_dir)) not in (None, place):
        raise ConfigError(
            f"--resume: the checkpoints of this run are in {earlier}, not in {place}: give the same checkpoint.place"
        )
    manifest = latest_sound(place, model=config.model.model_dump(mode="json"), notices=notices)
    if manifest is None and notices:
        raise ConfigError(f"--resume: no checkpoint in {place} can be used: {'; '.join(notices)}; name a new --run-dir")
    if manifest is None:
        set_earlier_attempt_aside(run_dir)
        return Resumption(notices=["there is no checkpoint to go on from: the run begins again"])
    num_peers = config.swarm.num_peers
    local_step = min(share.file.local_step for share in deal(manifest, num_peers=num_peers))
    text = f"it goes on from checkpoint {manifest.mark}, of {_peers(len(manifest.peers))}, with {_peers(num_peers)}: "
    text += f"from local step {local_step} on, {manifest.samples:,} samples"
    return Resumption(manifest=manifest, place=place, records=recorded(run_dir), notices=[*notices, text])


def _peers(number: int) -> str:
    return f"{number} peer{'s' if number != 1 else ''}"


def _end_last_line(events: Path) -> None:
    """Of a driver that died while it wrote: what is added begins on a line of its own."""
    with events.open("rb+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
