"""Frozen values that cross process borders: what peers tell the driver.

Every record carries `peer_index` and `wall_time` (seconds since 1970, by the peer's clock), so that anybody that
writes it to disk needs to know nothing else. Only these and the config travel between processes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter

Outcome = Literal["averaged", "partial", "alone", "failed"]
OUTCOMES: tuple[Outcome, ...] = ("averaged", "partial", "alone", "failed")
Kind = Literal["parameter", "statistic", "momentum"]  # of what is averaged
Statistics = Literal["none", "averaged", "recalibrated"]  # BatchNorm's, in the merged model; none: it has none


@dataclass(frozen=True, kw_only=True)
class Record:
    """What every record has."""

    peer_index: int
    wall_time: float  # seconds since 1970


@dataclass(frozen=True, kw_only=True)
class AveragedTensor:
    """A tensor of the model, or an optimizer's momentum of one, of which peers take the mean."""

    name: str  # in the model; a momentum has that of its parameter
    shape: tuple[int, ...]
    kind: Kind
    num_bytes: int  # of one copy, in float32


@dataclass(frozen=True, kw_only=True)
class PeerStarted(Record):
    """A peer is up: its DHT node and averager run, its model and data are ready."""

    peer_id: str
    multiaddrs: tuple[str, ...]
    pid: int
    node: str
    device: str  # "cpu" or "cuda:0 (NVIDIA H200)"
    num_parameters: int  # of the model, frozen ones too
    num_samples: int  # size of this peer's shard
    averaged_bytes: int = 0  # of what peers average, one copy
    averaged: tuple[AveragedTensor, ...] = ()  # in peer 0 alone: it is the same in all
    class_counts: tuple[int, ...] = ()  # of its shard, by class
    local_step: int = 0  # at which it begins
    incarnation: int = 0  # processes of this index that were lost before
    samples: int = 0  # that those have seen
    pid_namespace: int = 0  # in which its process has that number; of the kernel


@dataclass(frozen=True, kw_only=True)
class Progress(Record):
    """Local training since the previous Progress of this peer."""

    local_step: int  # optimizer updates so far
    samples: int  # samples seen so far
    data_epoch: float  # passes over the shard so far
    loss: float | None = None  # mean training loss since the last report; None: of a loop of the user's own
    lr: float | None = None  # None: not known
    samples_per_s: float


@dataclass(frozen=True, kw_only=True)
class Evaluation(Record):
    """Quality on the held-out test split."""

    local_step: int
    model: Literal["peer", "merged"]  # this peer's own parameters, or the mean of the swarm after the final rounds
    accuracy: float | None  # 0..1; None: the labels are no classes
    loss: float
    metrics: Mapping[str, float] = field(default_factory=dict)  # of the user's own
    batch_norm: Statistics = "none"  # where the merged model's statistics come from


@dataclass(frozen=True, kw_only=True)
class Reported(Record):
    """What a loop of the user's own wants to be seen, at its names."""

    local_step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class RoundReport(Record):
    """One gossip round as this peer saw it. Parameters are bitwise unchanged unless `outcome == "averaged"`."""

    round: int
    outcome: Outcome
    cause: str  # in words; empty when averaged
    group: tuple[int, ...]  # peer_index of all who averaged together, this peer included, sorted
    local_step: int  # local step at which the snapshot was taken
    staleness_steps: int  # local steps taken between snapshot and delta
    matchmaking_s: float  # from the round's start until the group was complete
    allreduce_s: float  # from the complete group until the last part
    blocked_s: float  # how long local steps stood still for this round
    bytes_sent: int
    moved: float  # L2 norm of what averaging changed in this peer's parameters
    sketch_before: tuple[float, ...] = ()  # projection of the snapshot (mixing.Sketch); empty when not taken
    sketch_after: tuple[float, ...] = ()  # the same of the parameters that the round arrived at


@dataclass(frozen=True, kw_only=True)
class PeerFinished(Record):
    """The peer did all its local steps and the final rounds, and is still there to be asked for its model."""

    local_step: int
    samples: int
    train_s: float  # from its first to its last local step
    bytes_sent: int
    final_outcome: Outcome  # of the final round, in which the swarm mixes to agreement
    final_cause: str
    sketch: tuple[float, ...]  # of the parameters it ends with


@dataclass(frozen=True, kw_only=True)
class PeerLost(Record):
    """The driver's own record: a peer is gone."""

    cause: str
    is_replaced: bool = False  # it gets a successor


@dataclass(frozen=True, kw_only=True)
class Fault(Record):
    """The driver's own record: it has hit a peer on purpose."""

    kind: str  # as in `faults.kinds`
    for_s: float  # how long it lasts; 0: until something is done about it


@dataclass(frozen=True, kw_only=True)
class Saved(Record):
    """The peer has written its state for a checkpoint, or could not."""

    mark: int  # of the checkpoint
    local_step: int
    samples: int
    name: str = ""  # of its file
    num_bytes: int = 0
    digest: str = ""
    cause: str = ""  # not empty: why there is no file


@dataclass(frozen=True, kw_only=True)
class Usage(Record):
    """What a peer takes of its machine, and what is left there. Bytes of memory that processes share count in parts."""

    local_step: int
    trainer_bytes: int  # of the process that trains
    network_bytes: int  # of its network side, all processes
    helper_bytes: int  # of others that the trainer has started, such as a DataLoader's
    device_bytes: int | None = None  # of GPU memory, that torch has reserved; None: no GPU
    open_files: int  # of the process that trains
    most_open_files: int  # that it may have
    memory_free_bytes: int  # of the machine, or its container
    memory_bytes: int  # in all
    shared_free_bytes: int | None = None  # in /dev/shm
    disk_free_bytes: int | None = None  # where this peer's checkpoints go; None: nowhere, or a URI


@dataclass(frozen=True, kw_only=True)
class RunResumed(Record):
    """The driver's own record: an interrupted run goes on. `peer_index` is -1."""

    local_step: int
    num_peers: int  # from now on


@dataclass(frozen=True, kw_only=True)
class PeerLeft(Record):
    """A peer has left its swarm in order, before it was done."""

    local_step: int
    is_replaced: bool = False  # it goes on elsewhere


@dataclass(frozen=True, kw_only=True)
class Notice(Record):
    """Something that a person should read, e.g. a setting that was skipped. `peer_index` -1: the swarm's."""

    text: str


RESTARTED = "another one took its place after"  # how a notice says that a peer's network side is back, and then when
BEGAN_APART = "this peer began with another model than"  # how a notice says so: the driver tells it of the swarm


KINDS: dict[str, type[Record]] = {
    kind.__name__: kind
    for kind in (
        *(PeerStarted, Progress, Evaluation, Reported, RoundReport, PeerFinished, Saved),
        *(PeerLost, PeerLeft, Fault, RunResumed, Notice, Usage),
    )
}


def to_json(record: Record, *, with_sketches: bool = False) -> dict[str, Any]:
    """A record as a JSON object; `event` names its type. Sketches are for the driver only, not for its files. What is
    not known is left out where it need not be there: a null may be a number that is none, too."""
    unknown = {
        field.name for field in dataclasses.fields(record) if field.default is getattr(record, field.name) is None
    }
    fields = {
        name: value
        for name, value in dataclasses.asdict(record).items()
        if name not in unknown and (with_sketches or not name.startswith("sketch"))
    }
    return {"event": type(record).__name__, **fields}


def from_json(fields: Mapping[str, Any]) -> Record:
    """The record that `to_json` was given, from anybody on the network.

    Raises:
        ValueError: it is none; the message names what is wrong.
    """
    kind = KINDS.get(str(fields.get("event")))
    if kind is None:
        raise ValueError(f"no record is called {fields.get('event')}")
    values = {key: value for key, value in fields.items() if key != "event"}
    record: Record = TypeAdapter(kind).validate_python(values)
    return record
