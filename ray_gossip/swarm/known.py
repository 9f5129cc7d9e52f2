"""What the driver knows of a peer, whichever process it is."""

from __future__ import annotations

from dataclasses import dataclass

from ray_gossip.records import PeerFinished, PeerStarted, Progress, Record


@dataclass
class Known:
    """One peer, over all its processes."""

    incarnation: int = 0  # of the latest
    multiaddrs: tuple[str, ...] = ()
    samples: int = 0  # seen so far
    finished: PeerFinished | None = None

    def note(self, record: Record) -> None:
        """One of its own records."""
        match record:
            case PeerStarted():
                self.multiaddrs = record.multiaddrs
            case Progress():
                self.samples = record.samples
            case PeerFinished():
                self.finished = record

    @property
    def before(self) -> dict[str, int]:
        """What the next process of it is told of those before."""
        return {"incarnation": self.incarnation, "samples": self.samples}
