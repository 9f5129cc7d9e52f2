"""What a person sees of a run: a live table on a terminal, plain lines anywhere else.

Nothing here knows where its stream leads or reads anything but the swarm's state.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

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

from ray_gossip.records import Notice, PeerLeft, PeerLost, PeerStarted
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
        for news in state.news[self._num_told :]:
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
        for news in state.news[self._num_told :]:
            if not isinstance(news, PeerStarted):  # the table shows who is up
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
            total=None if phase == "starting" else len(peers) * state.total_steps,
        )
        self._live.update(Group(table(state), Text(f"{rounds_line(state)}\n{distance_line(state)}"), self._bar))


def table(state: SwarmState) -> Table:
    """The swarm, a row per peer; fits 80 columns."""
    peers = [peer for _, peer in sorted(state.peers.items())]
    shown = peers if len(peers) <= _MAX_ROWS else peers[: _MAX_ROWS - 1]
    grid = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), expand=False)
    for name in ("peer", "state", "device", f"step/{state.total_steps}", "loss", "accuracy", "samples/s"):
        grid.add_column(name, justify="left" if name in ("state", "device") else "right", no_wrap=True)
    grid.add_column("last round", no_wrap=True, min_width=13)
    grid.add_column("with", no_wrap=True)
    styles = {"lost": "red", "left": "dim", "starting": "dim"}
    for peer in shown:
        grid.add_row(*_cells(peer), style=styles.get(peer.status))
    if len(shown) < len(peers):
        grid.add_row(*_cells_of_many(peers[len(shown) :]), style="dim")
    return grid


def _phase(peers: Sequence[PeerState]) -> str:
    statuses = {peer.status for peer in peers}
    phases = ("training", "training"), ("final", "final rounds"), ("finished", "finished")
    return next((phase for status, phase in phases if status in statuses), "starting")


def _cells(peer: PeerState) -> list[str | Text]:
    return [
        str(peer.peer_index),
        peer.status,
        peer.device.split(" ")[0],  # the name of the GPU behind it would take the room of two columns
        str(peer.local_step),
        _number(peer.loss, ".3f"),
        _number(peer.accuracy, ".3f"),
        _number(peer.samples_per_s or None, ",.0f"),
        _last_round(peer),
        _groupmates(peer),
    ]


def _cells_of_many(peers: Sequence[PeerState]) -> list[str]:
    num_lost = sum(peer.lost is not None for peer in peers)
    return [
        f"+{len(peers)}",
        f"{num_lost} lost" if num_lost else "",
        "mean",
        _number(_mean([peer.local_step for peer in peers]), ".0f"),
        _number(_mean([peer.loss for peer in peers]), ".3f"),
        _number(_mean([peer.accuracy for peer in peers]), ".3f"),
        _number(_mean([peer.samples_per_s or None for peer in peers]), ",.0f"),
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


def rounds_line(state: SwarmState) -> str:
    """What became of the rounds, counted once for each peer, and what they cost."""
    counts = ", ".join(f"{count} {outcome}" for outcome, count in state.rounds.items() if count)
    return f"rounds: {counts or 'none yet'}; {state.bytes_sent / 1e6:,.1f} MB sent"


def distance_line(state: SwarmState) -> str:
    """How far apart the peers were in the last complete round."""
    if state.last_round is None:
        return "consensus distance -"
    before, after = state.last_round.consensus_distance_before, state.last_round.consensus_distance
    return f"consensus distance {before:.3g} -> {after:.3g} in round {state.last_round.round}"


def status_line(state: SwarmState) -> str:
    """The swarm in one line."""
    peers = list(state.peers.values())
    live = [peer for peer in peers if peer.is_live]
    if all(peer.progress is None for peer in peers):
        return f"starting: {len(live)} of {len(peers)} peers are up"
    steps = [peer.local_step for peer in live] or [0]
    span = f"{min(steps)}" if min(steps) == max(steps) else f"{min(steps)}..{max(steps)}"
    parts = [
        f"{len(live)} of {len(peers)} peers",
        f"step {span}/{state.total_steps}",
        f"loss {_number(_mean([peer.loss for peer in live]), '.3f')}",
        f"accuracy {_number(_mean([peer.accuracy for peer in live]), '.3f')}",
        f"{sum(peer.samples_per_s for peer in live):,.0f} samples/s",
        rounds_line(state),
        distance_line(state),
    ]
    return "; ".join(parts)


def headline(news: PeerStarted | PeerLost | PeerLeft | Notice) -> str:
    """An event in one line."""
    match news:
        case PeerStarted():
            return (
                f"peer {news.peer_index} is up on {news.node}: {news.device}, "
                f"{news.num_parameters:,} parameters, {news.averaged_bytes / 1e6:.3g} MB averaged, "
                f"{news.num_samples:,} samples"
            )
        case PeerLost():
            return f"peer {news.peer_index} is lost: {_first_line(news.cause)}"
        case PeerLeft():
            return f"peer {news.peer_index} has left, at local step {news.local_step}"
        case Notice():
            who = f"peer {news.peer_index}: " if news.peer_index >= 0 else ""
            return who + _first_line(news.text)


def print_summary(summary: Mapping[str, Any], run_dir: Path, *, stream: TextIO) -> None:
    """The end of a run, and where to look next.

    Args:
        summary: what stands in summary.json.
    """
    accuracies = [accuracy for accuracy in summary["peer_accuracy"] if accuracy is not None]
    peers = f"peers {min(accuracies):.3f} to {max(accuracies):.3f}" if accuracies else "no peer was evaluated"
    rounds = ", ".join(f"{count} {outcome}" for outcome, count in summary["rounds"].items())
    distance = _number(summary["consensus_distance"], ".3g")
    speed = _number(summary["samples_per_s"], ",.0f")
    all_runs = run_dir.parent if run_dir.parent.name == "runs" else run_dir
    lines = [
        ("accuracy", f"merged model {_number(summary['merged_accuracy'], '.4f')}, {peers}"),
        ("rounds", rounds),
        ("distance", f"consensus distance {distance} at the end"),
        ("averaged", f"{summary['averaged_tensors'] or '-'} tensors, {(summary['averaged_bytes'] or 0) / 1e6:.3g} MB"),
        ("speed", f"{speed} samples/s, {summary['bytes_sent'] / 1e6:,.1f} MB sent, {summary['wall_s']:.1f} s in all"),
        *(("lost", f"peer {lost['peer_index']}: {_first_line(lost['cause'])}") for lost in summary["peers_lost"]),
        ("files", f"{run_dir}: summary.json, events.jsonl, config.yaml"),
        ("curves", shlex.join(["tensorboard", "--logdir", str(all_runs)])),
    ]
    if summary["model"]:
        lines.append(("model", f"torch.load({json.dumps(summary['model'], ensure_ascii=False)}, weights_only=True)"))
    stream.write("\n" + "".join(f"{name:<9} {text}\n" for name, text in lines))
    stream.flush()


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _number(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def _first_line(text: str) -> str:
    first, *more = text.strip().splitlines() or [""]
    return f"{first} (the whole text is in events.jsonl)" if more else first
