"""Pictures for TensorBoard. matplotlib is loaded when the first one is drawn: it costs half a second."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logging.getLogger("matplotlib").setLevel(logging.ERROR)  # which else tells of a home that it cannot write to


def who_met_whom(meetings: Mapping[tuple[int, int], int], peers: Sequence[int]) -> bytes:
    """A PNG: how often each pair of peers averaged together.

    Args:
        meetings: (peer_index, groupmate's peer_index) -> rounds averaged together.
        peers: the peer indices, in the order of rows and columns.
    """
    from matplotlib.figure import Figure

    counts = [[meetings.get((row, column), 0) for column in peers] for row in peers]
    figure = Figure(figsize=(5.0, 4.2), dpi=100, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(counts, cmap="viridis", vmin=0)
    figure.colorbar(image, ax=axes, label="rounds averaged together")
    axes.set_title("Who averaged with whom")
    axes.set_xlabel("groupmate")
    axes.set_ylabel("peer")
    if len(peers) <= 32:
        axes.set_xticks(range(len(peers)), [str(peer) for peer in peers])
        axes.set_yticks(range(len(peers)), [str(peer) for peer in peers])
    if len(peers) <= 16:
        middle = max(map(max, counts), default=0) / 2
        for row, values in enumerate(counts):
            for column, count in enumerate(values):
                if row != column:
                    axes.text(column, row, str(count), ha="center", va="center", color="wk"[count > middle], size=8)
    return _as_png(figure)


def classes_of_peers(counts: Mapping[int, Sequence[int]]) -> bytes:
    """A PNG: how many samples of each class are in each peer's shard.

    Args:
        counts: peer_index -> samples of each class, [num_classes].
    """
    from matplotlib.figure import Figure

    peers = sorted(counts)
    rows = [list(counts[peer]) for peer in peers]
    figure = Figure(figsize=(6.5, max(2.0, min(8.0, 1.2 + 0.25 * len(peers)))), dpi=100, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(rows, cmap="viridis", vmin=0, aspect="auto", interpolation="nearest")
    figure.colorbar(image, ax=axes, label="samples")
    axes.set_title("Classes in the peers' shards")
    axes.set_xlabel("class")
    axes.set_ylabel("peer")
    if len(peers) <= 32:
        axes.set_yticks(range(len(peers)), [str(peer) for peer in peers])
    if len(rows[0]) <= 20:
        axes.set_xticks(range(len(rows[0])))
    return _as_png(figure)


def _as_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
