"""A model on its way between a training process and its sidecar: in memory without a name, however large it is."""

from __future__ import annotations

import dataclasses
import os

import torch

from ray_gossip.gossip.handover import Handover


def packed(handover: Handover) -> int:
    """A descriptor to send; close it then."""
    file = os.memfd_create("ray_gossip model")
    with os.fdopen(os.dup(file), "wb") as stream:
        fields = {field.name: getattr(handover, field.name) for field in dataclasses.fields(handover)}
        torch.save(fields, stream)
    return file


def opened(file: int) -> Handover:
    """What was packed. Closes the descriptor."""
    with os.fdopen(file, "rb") as stream:
        stream.seek(0)
        return Handover(**torch.load(stream, weights_only=True))
