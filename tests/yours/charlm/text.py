"""Texts from the documentation that comes with Python."""

from __future__ import annotations

from pydoc_data.topics import topics

import torch
from torch import Tensor

from ray_gossip.data import Dataset

ALPHABET = "\n !\"#%'()*+,-./0123456789:;<=>?@[]_`abcdefghijklmnopqrstuvwxyz{}"


def next_characters(length: int = 32, num_characters: int = 100_000) -> Dataset:
    """Pieces of text; the labels of a piece are the same characters, one place further."""
    characters = _encode("".join(topics[name] for name in sorted(topics))[:num_characters])
    pieces = characters[: len(characters) // (length + 1) * (length + 1)].view(-1, length + 1)
    inputs, labels = pieces[:, :-1], pieces[:, 1:]
    is_test = torch.arange(len(pieces)) % 10 == 0
    return Dataset(
        train_inputs=inputs[~is_test],
        train_labels=labels[~is_test],
        test_inputs=inputs[is_test],
        test_labels=labels[is_test],
        num_classes=len(ALPHABET),
    )


def topics_of_pieces(names: tuple[str, ...] = ("strings", "integers"), length: int = 16) -> Dataset:
    """Pieces of text; the label of a piece is the topic that it comes from."""
    pieces = [_encode(topics[name]).unfold(0, length, length) for name in names]
    inputs = torch.cat(pieces)
    labels = torch.cat([torch.full((len(piece),), index) for index, piece in enumerate(pieces)])
    is_test = torch.arange(len(inputs)) % 4 == 0
    return Dataset(
        train_inputs=inputs[~is_test],
        train_labels=labels[~is_test],
        test_inputs=inputs[is_test],
        test_labels=labels[is_test],
        num_classes=len(names),
    )


def _encode(text: str) -> Tensor:
    """Places in the alphabet, [characters it has in it] int64."""
    return torch.tensor([ALPHABET.index(character) for character in text.lower() if character in ALPHABET])
