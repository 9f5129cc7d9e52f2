"""What the driver knows of a peer, whichever process it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_gossip.records import PeerFinished, PeerStarted, Progress, Record, RoundReport


@dataclass(frozen=True, kw_only=True)
class Saves:
    """What the peers of a run have to do with its checkpoints."""

    place: str | None = None  # where they save themselves; None: nowhere
    resumed: Sequence[Mapping[str, Any]] = ()  # from what each goes on: of a `checkpoints.saving.Resumed`; none: begin

    def samples_of(self, index: int) -> int:
        """That a peer has seen before it starts."""
        return int(self.resumed[index]["samples"]) if self.resumed else 0

    def of(self, index: int, *, incarnation: int) -> dict[str, Any]:
        """For this process of a peer. A successor takes over the model of a living one."""
        place = {} if self.place is None else {"place": self.place}
        return place | ({"resumed": self.resumed[index]} if self.resumed and not incarnation else {})


@dataclass
class Known:
    """One peer, over all its processes."""

    incarnation: int = 0  # of the latest
    multiaddrs: tuple[str, ...] = ()
    process: tuple[int, int] = -1, -1  # its id, and the namespace of that
    samples: int = 0  # seen so far
    round: int = -1  # the latest of which it has told
    finished: PeerFinished | None = None

    def note(self, record: Record) -> None:
        """One of its own records."""
        match record:
            case PeerStarted():
                self.multiaddrs, self.process = record.multiaddrs, (record.pid, record.pid_namespace)
            case Progress():
                self.samples = record.samples
            case RoundReport():
                self.round = record.round
            case PeerFinished():
                self.finished = record

    @property
    def before(self) -> dict[str, int]:
        """What the next process of it is told of those before."""
        return {"incarnation": self.incarnation, "samples": self.samples}


def done_first(peers: Iterable[Known]) -> list[int]:
    """The peers that are done: those first that took part in the final rounds."""
    ends = [known.finished for known in peers if known.finished]
    return [end.peer_index for end in sorted(ends, key=lambda end: (end.final_outcome != "averaged", end.peer_index))]


def why_no_process(known: Known, *, others_are_done: bool) -> str:
    """Why no other process of this peer is started any more."""
    if not known.multiaddrs:
        return "it never came in: there was no room for it before the others were done"
    why = "the others are done" if others_are_done else "nobody is left whose model it could take over"
    return f"nobody takes its place: {why}"
