"""What a checkpoint consists of, and which there are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ray_gossip import storage
from ray_gossip.records import Saved

_NAME, _VERSION = "manifest.json", 1
_CHUNK = 1 << 20
_IDENTITY = ("name", "factory", "norm")  # keys that name another model; whether model.args do, peers see


@dataclass(frozen=True, kw_only=True)
class PeerFile:
    """The state of one peer."""

    peer_index: int
    name: str  # in the checkpoint's folder
    num_bytes: int
    digest: str  # blake2b, 16 bytes, in hex
    local_step: int
    samples: int

    @classmethod
    def of(cls, saved: Saved) -> PeerFile:
        return cls(
            peer_index=saved.peer_index,
            name=saved.name,
            num_bytes=saved.num_bytes,
            digest=saved.digest,
            local_step=saved.local_step,
            samples=saved.samples,
        )


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A whole checkpoint."""

    mark: int  # its name: about the local step at which the swarm was
    run_id: str
    wall_time: float  # seconds since 1970
    model: dict[str, Any]  # the `model` section of the config
    peers: tuple[PeerFile, ...]
    metrics: dict[str, float] = field(default_factory=dict)  # mean over the peers, as of then
    version: int = _VERSION

    @property
    def local_step(self) -> int:
        """Of the peer that had come least far."""
        return min(peer.local_step for peer in self.peers)

    @property
    def samples(self) -> int:
        """Seen by all peers until then."""
        return sum(peer.samples for peer in self.peers)


def folder_of(place: str, mark: int) -> str:
    return storage.inside(place, f"{mark:09d}")


def save(place: str, manifest: Manifest) -> None:
    """From now on this checkpoint exists. Raises OSError."""
    text = json.dumps(asdict(manifest), indent=1)
    storage.write_whole(folder_of(place, manifest.mark), _NAME, f"{text}\n".encode())


def all_in(place: str, *, notices: list[str] | None = None) -> list[Manifest]:
    """The checkpoints that there are, the latest first. A manifest that cannot be read is a notice."""
    found = []
    for name in sorted(storage.names(place), reverse=True):
        if name.isdigit():
            try:
                found.append(_read(place, int(name)))
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                if notices is not None:
                    notices.append(f"checkpoint {int(name)} is passed over: its manifest is damaged: {_line(error)}")
    return found


def _read(place: str, mark: int) -> Manifest:
    try:
        values = json.loads(storage.read(folder_of(place, mark), _NAME))
        manifest: Manifest = TypeAdapter(Manifest).validate_python(values)
    except ValidationError as error:
        raise ValueError(f"{error.errors()[0]['loc']}: {error.errors()[0]['msg']}") from None
    if manifest.version != _VERSION or manifest.mark != mark or not manifest.peers:
        raise ValueError(f"version {manifest.version}, step {manifest.mark}, {len(manifest.peers)} peers")
    return manifest


def wrong_with(place: str, manifest: Manifest) -> str:
    """What is wrong with the files of a checkpoint; empty: nothing. Reads all of them."""
    for peer in manifest.peers:
        try:
            size, digest = measured(storage.chunks(folder_of(place, manifest.mark), peer.name, _CHUNK))
        except OSError as error:
            return f"{peer.name} cannot be read: {_line(error)}"
        if (size, digest) != (peer.num_bytes, peer.digest):
            return f"{peer.name} is damaged: " + (
                "it has other bytes" if size == peer.num_bytes else f"{size} bytes instead of {peer.num_bytes}"
            )
    return ""


def measured(chunks: Iterator[bytes]) -> tuple[int, str]:
    """Number of bytes, and digest."""
    size, digest = 0, hashlib.blake2b(digest_size=16)
    for chunk in chunks:
        size += len(chunk)
        digest.update(chunk)
    return size, digest.hexdigest()


def latest_sound(place: str, *, model: dict[str, Any], notices: list[str]) -> Manifest | None:
    """The latest checkpoint that a run of this model can go on from; what is wrong with later ones is a notice."""
    for manifest in all_in(place, notices=notices):
        if other := {key for key in _IDENTITY if manifest.model.get(key) != model.get(key)}:
            its = ", ".join(f"model.{key}={manifest.model.get(key)}" for key in sorted(other))
            notices.append(f"checkpoint {manifest.mark} is passed over: it is of another model: {its}")
        elif wrong := wrong_with(place, manifest):
            notices.append(f"checkpoint {manifest.mark} is passed over: {wrong}")
        else:
            return manifest
    return None


def prune(place: str, *, keep: int, better: Callable[[Manifest], float] | None = None) -> None:
    """Remove all but the latest, and the best. What is being written is newer than any manifest, and stays."""
    manifests = all_in(place)
    kept = {manifest.mark for manifest in manifests[:keep]}
    if better is not None and manifests:
        kept.add(max(manifests, key=better).mark)
    if len(manifests) < keep:
        return
    oldest = manifests[keep - 1].mark
    for name in storage.names(place):
        if name.isdigit() and int(name) < oldest and int(name) not in kept:
            storage.remove_folder(folder_of(place, int(name)))


def deal(manifest: Manifest, *, num_peers: int) -> Sequence[tuple[PeerFile, int]]:
    """From which file each of so many peers goes on, and how many samples count as seen by it. What has been seen is
    counted once, whatever their number."""
    files = sorted(manifest.peers, key=lambda peer: peer.peer_index)
    samples = [0] * num_peers
    for place, peer in enumerate(files):
        samples[place % num_peers] += peer.samples
    return [(files[index % len(files)], samples[index]) for index in range(num_peers)]


def _line(error: Exception) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return text.splitlines()[0] if text else type(error).__name__
