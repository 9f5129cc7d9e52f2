"""What a person sees of a run: a live table on a terminal, plain lines anywhere else.

Nothing here knows where its stream leads or reads anything but the swarm's state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from ray_gossip.lines import Measure, distance_line, headline, mean, measures, number, rounds_line, status_line
from ray_gossip.records import PeerLost, PeerStarted
from ray_gossip.telemetry import PeerState, SwarmState

_REFRESH_PER_S = 4
_MAX_ROWS = 16
_MAX_GROUPMATES = 3  # named in a row; more are counted
_STATUS_LINE_S = 5.0  # between two status lines where there is no terminal


class View(Protocol):
    """Shows a run while it lasts. Use as a context manager."""

    def __enter__(self) -> View: ...

    def __exit__(self, *_: object) -> None: ...

    def update(self, state: SwarmState) -> None:
        """Show the state, now or soon. Cheap: call it after every record, and when there is none as well."""


def open_view(stream: TextIO) -> View:
    """The view that suits the stream: live on a terminal that can move its cursor, else plain lines."""
    if stream.isatty():
        console = Console(file=stream)
        if not console.is_dumb_terminal:
            return LiveView(console)
    return PlainView(stream)


class PlainView:
    """A status line every few seconds, and a line for each event that matters."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._started = clock()
        self._last_status = self._started
        self._num_told = 0
        self._state: SwarmState | None = None

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_: object) -> None:
        if self._state is not None:
            self._line(status_line(self._state))

    def update(self, state: SwarmState) -> None:
        self._state = state
        for news in state.news[max(self._num_told, state.num_old_news) :]:
            self._line(headline(news))
        self._num_told = len(state.news)
        if self._clock() - self._last_status >= _STATUS_LINE_S:
            self._last_status = self._clock()
            self._line(status_line(state))

    def _line(self, text: str) -> None:
        self._stream.write(f"{self._clock() - self._started:6.1f} s  {text}\n")
        self._stream.flush()


class LiveView:
    """A table of the peers and a progress bar, repainted in place; losses and notices scroll by above it."""

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            expand=True,
        )
        self._task = self._bar.add_task("starting", total=None)
        self._live = Live(self._bar, console=console, refresh_per_second=_REFRESH_PER_S)
        self._drawn = float("-inf")
        self._num_told = 0
        self._state: SwarmState | None = None

    def __enter__(self) -> View:
        self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._state is not None:
                self._draw(self._state)
            else:
                self._live.transient = True  # nothing has begun: leave no bar behind
        finally:
            self._live.stop()  # gives the cursor back

    def update(self, state: SwarmState) -> None:
        self._state = state
        for news in state.news[max(self._num_told, state.num_old_news) :]:
            if not isinstance(news, PeerStarted):  # the table shows which peers are up
                self._console.print(Text(headline(news), style="red" if isinstance(news, PeerLost) else "yellow"))
        self._num_told = len(state.news)
        if self._clock() - self._drawn >= 1 / _REFRESH_PER_S:
            self._drawn = self._clock()
            self._draw(state)

    def _draw(self, state: SwarmState) -> None:
        # rich repaints from its own thread: give it finished tables, never the state, which goes on changing
        peers = [peer for peer in state.peers.values() if not (peer.lost or peer.left)]
        phase = _phase(peers)
        self._bar.update(
            self._task,
            description=phase,
            completed=sum(peer.local_step for peer in peers),
            total=None if phase == "starting" or state.total_steps is None else len(peers) * state.total_steps,
        )
        lines = Text(f"{rounds_line(state)}\n{distance_line(state)}")
        trouble = Text("\n".join(f"trouble: {each.text}" for each in state.present_troubles()), style="bold red")
        self._live.update(Group(table(state), lines, *([trouble] if trouble else []), self._bar))


def table(state: SwarmState) -> Table:
    """The swarm, a row per peer; fits 80 columns."""
    peers = [peer for _, peer in sorted(state.peers.items())]
    shown = peers if len(peers) <= _MAX_ROWS else peers[: _MAX_ROWS - 1]
    grid = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), expand=False)
    shown_measures = measures(state)
    step = "step" if state.total_steps is None else f"step/{state.total_steps}"
    for name in ("peer", "state", "device", step, *(measure.name for measure in shown_measures), "samples/s"):
        grid.add_column(name, justify="left" if name in ("state", "device") else "right", no_wrap=True)
    grid.add_column("last round", no_wrap=True, min_width=13)
    grid.add_column("with", no_wrap=True)
    styles = {"lost": "red", "left": "dim", "starting": "dim"}
    for peer in shown:
        grid.add_row(*_cells(peer, shown_measures), style=styles.get(peer.status))
    if len(shown) < len(peers):
        grid.add_row(*_cells_of_many(peers[len(shown) :], shown_measures), style="dim")
    return grid


def _phase(peers: Sequence[PeerState]) -> str:
    statuses = {peer.status for peer in peers}
    phases = ("training", "training"), ("final", "final rounds"), ("finished", "finished")
    return next((phase for status, phase in phases if status in statuses), "starting")


def _cells(peer: PeerState, shown: Sequence[Measure]) -> list[str | Text]:
    return [
        str(peer.peer_index),
        peer.status,
        peer.device.split(" ")[0],  # the name of the GPU behind it would take the room of two columns
        str(peer.local_step),
        *(number(measure.of(peer), ".3f") for measure in shown),
        number(peer.samples_per_s or None, ",.0f"),
        _last_round(peer),
        _groupmates(peer),
    ]


def _cells_of_many(peers: Sequence[PeerState], shown: Sequence[Measure]) -> list[str]:
    num_lost = sum(peer.lost is not None for peer in peers)
    return [
        f"+{len(peers)}",
        f"{num_lost} lost" if num_lost else "",
        "mean",
        number(mean([peer.local_step for peer in peers]), ".0f"),
        *(number(mean([measure.of(peer) for peer in peers]), ".3f") for measure in shown),
        number(mean([peer.samples_per_s or None for peer in peers]), ",.0f"),
        "",
        "",
    ]


def _last_round(peer: PeerState) -> Text | str:
    if peer.round is None:
        return ""
    style = {"averaged": "green", "failed": "red"}.get(peer.round.outcome, "yellow")
    return Text(f"{peer.round.round} ").append(peer.round.outcome, style=style)


def _groupmates(peer: PeerState) -> str:
    named, more = peer.groupmates[:_MAX_GROUPMATES], peer.groupmates[_MAX_GROUPMATES:]
    return " ".join([*map(str, named), *([f"+{len(more)}"] if more else [])])
