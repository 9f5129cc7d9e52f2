"""How a run stands, and why its rounds did not average, from another shell: read from its folder.

Exit codes: 0 it is well; 2 there is no run, or none that can be read; 3 something is wrong: a
trouble that is not over, a peer that was lost, or a run that ended without a model; 4 its driver writes no more, and it
has not ended.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ray_gossip.causes import HAS_LEFT, IS_DONE, SCHEDULED_ALONE
from ray_gossip.checkpoints.manifest import all_in, marks_in, wrong_with
from ray_gossip.console import table
from ray_gossip.errors import ConfigError, UserError
from ray_gossip.lines import distance_line, headline, rounds_line
from ray_gossip.records import PeerLost, RoundReport
from ray_gossip.resume import place_of
from ray_gossip.storage import is_uri
from ray_gossip.telemetry import Replay, SwarmState, config_of, dump_json, replay
from ray_gossip.telemetry.advice import advice_on

__all__ = ["as_json", "code_of", "dump_json", "explain", "latest_run", "replay", "show"]

WELL, WRONG, ABANDONED = 0, 3, 4
_HARMLESS = (SCHEDULED_ALONE, IS_DONE, HAS_LEFT)
_EVERY_S = 1.0  # how often a watched run is read
_MOST_PEERS = 16  # of which it is shown who mixed with whom


def latest_run(folder: Path) -> Path:
    """The run of a folder: itself, or the one below it that was written to last.

    Raises:
        ConfigError: there is none.
    """
    if (folder / "events.jsonl").is_file():
        return folder
    runs = sorted(folder.glob("*/events.jsonl"), key=lambda events: events.stat().st_mtime)
    if not runs:
        raise ConfigError(f"{folder} holds no run: there is no events.jsonl in it, nor in a folder below; name RUN_DIR")
    return runs[-1].parent


def show(run_dir: Path, stream: TextIO, *, watch: bool = False) -> int:
    """The table of a run, and a line that says how it stands. Returns the exit code.

    Args:
        watch: again and again, until the run has ended.
    """
    found = replay(run_dir)
    console = Console(file=stream)
    if not watch or found.summary is not None or found.is_abandoned:
        for part in _picture(found):
            console.print(part, soft_wrap=True)
        return code_of(found)
    with Live(Group(*_picture(found)), console=console, auto_refresh=False) as live:
        while found.summary is None and not found.is_abandoned:
            time.sleep(_EVERY_S)
            found = replay(run_dir)
            live.update(Group(*_picture(found)), refresh=True)
    return code_of(found)


def show_checkpoints(run_dir: Path, stream: TextIO) -> int:
    """A line for each, the latest first. Returns the exit code."""
    place = place_of(config_of(run_dir), run_dir)
    notices: list[str] = []
    manifests = all_in(place, notices=notices) if place is not None else []
    wrong = [wrong_with(place or "", manifest) for manifest in manifests]
    lines = (
        [f"{'checkpoint':>10}  {'saved':19}  {'peers':>5}  {'samples':>13}  {'MB':>9}  measured"] if manifests else []
    )
    for manifest, problem in zip(manifests, wrong, strict=True):
        saved = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(manifest.wall_time))
        num_bytes = sum(peer.num_bytes for peer in manifest.peers)
        measured = ", ".join(f"{name} {value:.4g}" for name, value in manifest.metrics.items())
        lines.append(
            f"{manifest.mark:>10}  {saved}  {len(manifest.peers):>5}  {manifest.samples:>13,}  "
            f"{num_bytes / 1e6:>9,.1f}  {problem or measured}"
        )
    stream.write("".join(f"{line}\n" for line in [*lines, *notices] or [f"{run_dir} has no checkpoint"]))
    return WELL if wrong and not wrong[0] else WRONG


def export_checkpoint(run_dir: Path, path: Path, *, mark: int | None, stream: TextIO) -> int:
    """Write the merged model of a checkpoint to a new file. Returns the exit code.

    Args:
        mark: of the checkpoint; None: the latest that is sound.

    Raises:
        UserError: there is no such checkpoint, or no such file can be written.
    """
    from ray_gossip.checkpoints.export import check, export  # loads torch

    check(path)
    place = place_of(config_of(run_dir), run_dir)
    there = all_in(place) if place is not None else []
    found = [each for each in there if mark in (None, each.mark)]
    sound = next((each for each in found if not wrong_with(place or "", each)), None)
    if place is None or sound is None:
        which = "checkpoint" if mark is None else f"checkpoint {mark}"
        raise UserError(f"{run_dir} has no {which} that is sound; ray-gossip checkpoints {run_dir} lists them")
    try:
        export(place, sound, path)
    except OSError as error:
        raise UserError(f"--export {path}: {error.strerror or error}") from error
    stream.write(f"{path}: the model of checkpoint {sound.mark}, the mean of {len(sound.peers)} peers\n")
    return WELL


def code_of(found: Replay) -> int:
    if found.is_abandoned:
        return ABANDONED
    has_no_model = found.summary is not None and found.summary["model"] is None
    return WRONG if found.state.present_troubles() or _lost(found.state) or has_no_model else WELL


def as_json(found: Replay) -> dict[str, Any]:
    """The same for a script."""
    state = found.state
    return {
        "run_dir": str(found.run_dir),
        "stands": _stands(found),
        "is_well": code_of(found) == WELL,
        "silent_s": found.silent_s,
        "num_unread": found.num_unread,
        "rounds": dict(state.rounds),
        "causes": dict(state.causes.most_common()),
        "consensus_distance": found.summary["consensus_distance"] if found.summary else state.consensus_distance,
        "troubles": [trouble.text for trouble in state.present_troubles()],
        "lost": {str(lost.peer_index): lost.cause for lost in _lost(state)},
        "peers": [
            {
                "peer_index": peer.peer_index,
                "status": peer.status,
                "local_step": peer.local_step,
                "loss": peer.loss,
                "accuracy": peer.accuracy,
                "samples_per_s": peer.samples_per_s,
            }
            for _, peer in sorted(state.peers.items())
        ],
    }


def explain(run_dir: Path, stream: TextIO, *, peer: int | None, round: int | None, most: int = 10) -> int:
    """Why rounds did not average, who mixed with whom, and what to turn. Returns the exit code of `show`.

    Args:
        peer: of this one alone.
        round: of this one alone, whatever came of it.
        most: so many rounds, the latest.
    """
    found = replay(run_dir)
    state = found.state
    if peer is not None and peer not in state.peers:
        raise ConfigError(f"--peer {peer}: there is none; there are {', '.join(map(str, sorted(state.peers)))}")
    chosen = [
        report
        for report in found.rounds
        if (peer is None or report.peer_index == peer)
        and (report.round == round if round is not None else report.outcome != "averaged" or report.cause)
    ]
    num_rounds = sum(peer is None or report.peer_index == peer for report in found.rounds)
    if round is not None and not chosen:
        raise ConfigError(f"--round {round}: it is not known{f' of peer {peer}' if peer is not None else ''}")
    lines = [rounds_line(state)]
    lines += [f"{count} times: {cause}" for cause, count in state.causes.most_common()]
    lines += [f"trouble: {each.text}{'; over now' * each.is_over}" for each in state.troubles.values()]
    lines += [headline(lost) for lost in _lost(state)]
    if round is None:
        lines += _advice([report for report in chosen if report.outcome != "averaged"], found)
    lines += ["", *map(_told, chosen[-most:])] if chosen else ["", _nothing(peer, num_rounds=num_rounds)]
    console = Console(file=stream)
    console.print(Text("\n".join(lines)), soft_wrap=True)
    if peer is None and round is None and state.meetings:
        console.print("\nrounds averaged together", _who_met_whom(state), sep="\n")
    return code_of(found)


def _advice(wrong: Sequence[RoundReport], found: Replay) -> list[str]:
    to_mend = [report for report in wrong if not any(words in report.cause for words in _HARMLESS)]
    if to_mend:
        return [f"commonest: {advice_on(to_mend, found.config.gossip)}"]
    is_well = wrong and not found.state.present_troubles()
    return ["nothing to mend: peers were scheduled alone, or their groupmates were done"] if is_well else []


def _picture(found: Replay) -> Sequence[Table | Text]:
    state = found.state
    notes = [Text(f"{found.num_unread} lines of events.jsonl cannot be read: left out")] if found.num_unread else []
    trouble = [Text(f"trouble: {each.text}", style="bold red") for each in state.present_troubles()]
    lost = [Text(headline(each), style="red") for each in _lost(state)]
    lines = Text(f"{rounds_line(state)}\n{distance_line(state)}")
    return [table(state), lines, *notes, *lost, *trouble, Text(f"{found.run_dir}: {_stands(found)}")]


def _stands(found: Replay) -> str:
    if found.summary is not None:
        if found.summary["model"]:
            return "has ended"
        place = place_of(found.config, found.run_dir)
        can_go_on = place is not None and not is_uri(place) and marks_in(place)
        return "has ended without a model: it was interrupted, or failed" + "; --resume goes on with it" * bool(
            can_go_on
        )
    wrote = f"its driver wrote {found.silent_s:.0f} s ago"
    return f"{wrote} and has not ended: it is dead, or stopped" if found.is_abandoned else f"runs; {wrote}"


def _told(report: RoundReport) -> str:
    mates = [index for index in report.group if index != report.peer_index]
    with_whom = f" with {', '.join(map(str, mates))}" if report.outcome == "averaged" and mates else ""
    took_s = report.matchmaking_s + report.allreduce_s
    cause = f": {report.cause}" if report.cause else ""
    return f"round {report.round}, peer {report.peer_index}: {report.outcome}{with_whom} after {took_s:.2f} s{cause}"


def _nothing(peer: int | None, *, num_rounds: int) -> str:
    whose = "" if peer is None else f" of peer {peer}"
    return f"every round{whose} has averaged whole so far" if num_rounds else f"there has been no round{whose} so far"


def _who_met_whom(state: SwarmState) -> Table:
    """Rounds that each pair has averaged together."""
    peers = sorted({index for pair in state.meetings for index in pair})
    shown = peers[:_MOST_PEERS]
    grid = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("", *map(str, shown)):
        grid.add_column(name, justify="right")
    for row in shown:
        grid.add_row(str(row), *(str(state.meetings[row, column] or ".") for column in shown))
    if len(shown) < len(peers):
        grid.caption = f"and {len(peers) - len(shown)} peers more"
    return grid


def _lost(state: SwarmState) -> Sequence[PeerLost]:
    return [peer.lost for _, peer in sorted(state.peers.items()) if peer.lost]
