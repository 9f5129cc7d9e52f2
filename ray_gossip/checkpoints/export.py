"""One model out of a checkpoint: what the peers would agree on if their run ended there."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor

from ray_gossip import storage
from ray_gossip.checkpoints.manifest import Manifest
from ray_gossip.checkpoints.writer import load
from ray_gossip.errors import UserError

SUFFIXES = (".pt", ".safetensors")


def merged(place: str, manifest: Manifest) -> dict[str, Tensor]:
    """The mean over the peers of what they average; the rest is that of the first. One peer's file is in memory at a
    time.

    Raises:
        SwarmError: a file cannot be read.
    """
    first, *others = manifest.peers
    state = load(place, manifest.mark, first.name)
    found: dict[str, Tensor] = state["model"]
    # a model has a memory under several names where parameters are tied: each is added up by itself all the same
    found = {name: tensor.clone() for name, tensor in found.items()}
    for peer in others:
        other = load(place, manifest.mark, peer.name)["model"]
        for name in state["averaged"]:
            found[name] += other[name]
    for name in state["averaged"]:
        found[name] /= len(manifest.peers)
    return found


def export(place: str, manifest: Manifest, path: Path) -> None:
    """Write the merged model as a state_dict: by `torch.save`, or as safetensors by the file's name.

    Raises:
        UserError: the name says neither, or safetensors is not installed.
        SwarmError: a file of the checkpoint cannot be read.
        OSError: this one cannot be written.
    """
    check(path)
    model = merged(place, manifest)
    if path.suffix == ".safetensors":
        from safetensors.torch import save

        content = save({name: tensor.contiguous() for name, tensor in model.items()})
    else:
        torch.save(model, buffer := io.BytesIO())
        content = buffer.getvalue()
    storage.write_whole(str(path.absolute().parent), path.name, content)


def check(path: Path) -> None:
    """Raise UserError where nothing can be written."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"--export {path}: name a file that ends in {' or '.join(SUFFIXES)}")
    if path.exists():
        raise UserError(f"--export {path} is there already: name another")
    if path.suffix == ".safetensors":
        try:
            import safetensors.torch  # noqa: F401
        except ImportError:
            raise UserError(f"--export {path} needs safetensors: pip install safetensors") from None
