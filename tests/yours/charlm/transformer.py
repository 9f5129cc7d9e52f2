"""A small decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def build(in_shape: tuple[int, ...], num_classes: int, dim: int = 32, num_layers: int = 1) -> nn.Module:
    return Decoder(in_shape[0], num_classes, dim, num_layers)


class Decoder(nn.Module):
    def __init__(self, length: int, vocabulary: int, dim: int, num_layers: int) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(vocabulary, dim), nn.Embedding(length, dim)
        layer = nn.TransformerEncoderLayer(dim, 4, 4 * dim, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
        self.head = nn.Linear(dim, vocabulary)
        self.future: Tensor
        self.register_buffer("future", torch.triu(torch.ones(length, length, dtype=torch.bool), 1), persistent=False)

    def forward(self, characters: Tensor) -> Tensor:
        """[batch_size, length] int64 -> logits of the next ones, [batch_size, length, vocabulary]."""
        length = characters.shape[1]
        states = self.characters(characters) + self.places.weight[:length]
        logits: Tensor = self.head(self.layers(states, mask=self.future[:length, :length]))
        return logits
