"""What a checkpoint consists of, and which there are."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from ray_gossip import storage
from ray_gossip.records import Saved

BUSY = "the one before is still being written: save less often"  # why a peer's part is missing

_NAME, _VERSION = "manifest.json", 1
_FOLDER = re.compile(r"[0-9]{9}", re.ASCII)
_CHUNK = 1 << 20
_IDENTITY = ("name", "factory", "norm")  # keys that name another model; whether model.args do, peers see

_Number = Annotated[int, Field(strict=True, ge=0, lt=2**63)]


@dataclass(frozen=True, kw_only=True)
class PeerFile:
    """The state of one peer."""

    peer_index: _Number
    name: Annotated[str, Field(pattern=r"^peer-[0-9]{2,5}-[0-9a-f]{8}\.pt$")]  # in the checkpoint's folder
    num_bytes: _Number
    digest: str  # blake2b, 16 bytes, in hex
    local_step: _Number
    samples: _Number

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

    mark: _Number  # its name: about the local step at which the swarm was
    run_id: str
    wall_time: float  # seconds since 1970
    model: dict[str, Any]  # the `model` section of the config
    num_peers: _Number  # of the run; of peers that were lost, and not replaced, there is no file
    peers: tuple[PeerFile, ...]
    other_samples: _Number = 0  # that such peers had seen
    metrics: dict[str, float] = field(default_factory=dict)  # mean over the peers, as of then
    version: int = _VERSION

    @property
    def local_step(self) -> int:
        """Of the peer that had come least far."""
        return min(peer.local_step for peer in self.peers)

    @property
    def samples(self) -> int:
        """Seen by all peers until then."""
        return sum(peer.samples for peer in self.peers) + self.other_samples


def folder_of(place: str, mark: int) -> str:
    return storage.inside(place, f"{mark:09d}")


def save(place: str, manifest: Manifest) -> None:
    """From now on this checkpoint exists. Raises OSError."""
    text = json.dumps(asdict(manifest), indent=1)
    storage.write_whole(folder_of(place, manifest.mark), _NAME, f"{text}\n".encode())


def marks_in(place: str) -> list[int]:
    """Of the checkpoints that there are, whole or not, the latest first. Raises OSError."""
    return sorted((int(name) for name in storage.names(place) if _FOLDER.fullmatch(name)), reverse=True)


def all_in(place: str, *, notices: list[str] | None = None) -> list[Manifest]:
    """The checkpoints that are whole, the latest first. A manifest that cannot be read is a notice."""
    found = []
    for mark in marks_in(place):
        try:
            found.append(_read(place, mark))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError) as error:
            if notices is not None:
                notices.append(f"checkpoint {mark} is passed over: its manifest is damaged: {_line(error)}")
    return found


def _read(place: str, mark: int) -> Manifest:
    try:
        values = json.loads(storage.read(folder_of(place, mark), _NAME))
        manifest: Manifest = TypeAdapter(Manifest).validate_python(values)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise ValueError(f"{where}: {error.errors()[0]['msg']}") from None
    indices = {peer.peer_index for peer in manifest.peers}
    if manifest.version != _VERSION or manifest.mark != mark or not 0 < len(indices) == len(manifest.peers):
        raise ValueError(f"version {manifest.version}, step {manifest.mark}, peers {sorted(indices)}")
    return manifest


def wrong_with(place: str, manifest: Manifest) -> str:
    """What is wrong with the files of a checkpoint; empty: nothing. Reads all of them."""
    for peer in manifest.peers:
        try:
            size, digest = measured(storage.chunks(folder_of(place, manifest.mark), peer.name, _CHUNK))
        except (OSError, ValueError) as error:
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


def prune(place: str, own: Sequence[int], *, keep: int, better: Callable[[Manifest], float] | None = None) -> list[int]:
    """Remove all of a run's own checkpoints but the latest, and the best; returns those that are left. Removes older
    folders without a manifest, too, and nothing else. Raises OSError.

    Args:
        own: marks, the latest last.
    """
    manifests = {manifest.mark: manifest for manifest in all_in(place)}
    known = [mark for mark in own if mark in manifests]
    kept = set(known[-keep:])
    if better is not None and known:
        kept.add(max((manifests[mark] for mark in known), key=better).mark)
    for mark in marks_in(place):
        is_old = mark in known and mark not in kept
        is_none = kept and mark < min(kept) and not storage.exists(folder_of(place, mark), _NAME)
        if is_old or is_none:
            storage.remove_folder(folder_of(place, mark))
    return [mark for mark in known if mark in kept]


@dataclass(frozen=True, kw_only=True)
class Share:
    """From what one peer goes on."""

    file: PeerFile
    samples: int  # that count as seen by it
    is_own: bool  # it is the same peer, of as many
    same_data: tuple[str, ...]  # files of all peers whose samples it goes on with


def deal(manifest: Manifest, *, num_peers: int) -> list[Share]:
    """To so many peers. What has been seen is counted once, whatever their number."""
    files = {peer.peer_index: peer for peer in manifest.peers}
    samples = [0] * num_peers
    samples[0] += manifest.other_samples
    for index, peer in files.items():
        samples[index % num_peers] += peer.samples
    others = sorted(files)
    return [
        Share(
            file=files.get(index) or files[others[index % len(others)]],
            samples=samples[index],
            is_own=index in files and num_peers == manifest.num_peers,
            same_data=tuple(files[other].name for other in others if other % num_peers == index),
        )
        for index in range(num_peers)
    ]


def _line(error: Exception) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return text.splitlines()[0] if text else type(error).__name__
