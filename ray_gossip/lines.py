"""What is said of a run in a line: how it stands, what happens, and how it has ended."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from ray_gossip.records import Fault, Notice, PeerLeft, PeerLost, PeerStarted
from ray_gossip.telemetry import News, PeerState, SwarmState


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
        f"step {span}" + (f"/{state.total_steps}" if state.total_steps is not None else ""),
        *(f"{each.name} {number(mean([each.of(peer) for peer in live]), '.3f')}" for each in measures(state)),
        *([f"{speed:,.0f} samples/s"] if (speed := sum(peer.samples_per_s for peer in live)) else []),
        rounds_line(state),
        distance_line(state),
        *(f"TROUBLE: {each.kind}" for each in state.present_troubles()),
        *time_left(state),
    ]
    return "; ".join(parts)


_ENDLESS_S = 1e7  # of runs that somebody, or a clock, is to end


def time_left(state: SwarmState) -> list[str]:
    """Until the last peer has done its steps, at its speed so far; nothing where that is not known."""
    left = [0.0]
    for peer in state.live_peers():
        first, latest = peer.first_progress, peer.progress
        if state.total_steps is None or first is None or latest is None or latest.local_step <= first.local_step:
            continue
        step_s = (latest.wall_time - first.wall_time) / (latest.local_step - first.local_step)
        left.append(step_s * (state.total_steps - latest.local_step))
    return [f"{duration(max(left))} left"] if 1 <= max(left) < _ENDLESS_S else []


def duration(seconds: float) -> str:
    """To a person: 8 s, 12 min, 3 h 5 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class Measure(NamedTuple):
    """What says how far a peer has come."""

    name: str
    of: Callable[[PeerState], float | None]


def measures(state: SwarmState) -> Sequence[Measure]:
    """Training loss and accuracy, or test loss where what they learn has no accuracy; of loops of the user's own, what
    they reported first."""
    peers = [peer for _, peer in sorted(state.peers.items())]
    if state.total_steps is None:
        names = dict.fromkeys(name for peer in peers for name in peer.reported)
        return [Measure(name, partial(_reported, name)) for name in [*names][:_MOST_MEASURES]]
    loss = Measure("loss", lambda peer: peer.loss)
    if any(peer.evaluation and peer.evaluation.accuracy is None for peer in peers):
        return [loss, Measure("test loss", lambda peer: peer.evaluation.loss if peer.evaluation else None)]
    return [loss, Measure("accuracy", lambda peer: peer.accuracy)]


_MOST_MEASURES = 2  # in a line, or in a row of the table


def _reported(name: str, peer: PeerState) -> float | None:
    return peer.reported.get(name)


_FAULTS = {
    "kill": "its process is killed",
    "stop": "its process is stopped",
    "slow": "its process gets a third of the time",
    "sidecar": "its network process is killed",
    "p2pd": "its libp2p daemon is killed",
    "drop": "nothing comes or goes on its network",
}


def headline(news: News) -> str:
    """An event in one line."""
    match news:
        case PeerStarted():
            if news.incarnation:
                comes = "is back" if news.samples else "comes in"
                return f"peer {news.peer_index} {comes} on {news.node}, at local step {news.local_step}"
            if not news.num_parameters:
                return f"peer {news.peer_index} is up on {news.node}: {news.device}; its loop begins"
            return (
                f"peer {news.peer_index} is up on {news.node}: {news.device}, "
                f"{news.num_parameters:,} parameters, {news.averaged_bytes / 1e6:.3g} MB averaged, "
                f"{f'{news.num_samples:,} samples' if news.num_samples else 'a loop of its own'}"
            )
        case PeerLost():
            then = "; another takes its place" if news.is_replaced else ""
            return f"peer {news.peer_index} is lost: {_first_line(news.cause)}{then}"
        case PeerLeft():
            then = "; it goes on elsewhere" if news.is_replaced else ""
            return f"peer {news.peer_index} has left, at local step {news.local_step}{then}"
        case Fault():
            lasts = f" for {news.for_s:g} s" if news.for_s else ""
            return f"peer {news.peer_index}: on purpose, {_FAULTS[news.kind]}{lasts}"
        case Notice():
            who = f"peer {news.peer_index}: " if news.peer_index >= 0 else ""
            return who + _first_line(news.text)


def print_summary(summary: Mapping[str, Any], run_dir: Path, *, stream: TextIO) -> None:
    """The end of a run, and where to look next.

    Args:
        summary: what stands in summary.json.
    """
    accuracies, losses = (_known(summary[key]) for key in ("peer_accuracy", "peer_loss"))
    name, own = ("accuracy", accuracies) if accuracies or not losses else ("loss", losses)
    merged = number(summary[f"merged_{name}"], ".4f")
    peers = f"peers {min(own):.3f} to {max(own):.3f}" if own else "no peer was evaluated"
    reported = ", ".join(f"{each} {number(value, '.4g')}" for each, value in summary["reported"].items())
    of_merged = "".join(f", {each} {number(value, '.4g')}" for each, value in summary["merged_metrics"].items())
    rounds = ", ".join(f"{count} {outcome}" for outcome, count in summary["rounds"].items())
    distance = number(summary["consensus_distance"], ".3g")
    speed = f"{number(summary['samples_per_s'], ',.0f')} samples/s, " * (summary["samples_per_s"] != 0)  # 0: not known
    all_runs = run_dir.parent if run_dir.parent.name == "runs" else run_dir
    lines = [
        *([("reported", f"{reported}: mean over the peers")] if reported else []),
        *([] if reported else [(name, f"merged model {merged}{of_merged}, {peers}")]),
        ("rounds", rounds),
        *(("trouble", each["text"] + "; over in the end" * each["is_over"]) for each in summary["troubles"]),
        ("distance", f"consensus distance {distance} at the end"),
        ("averaged", f"{summary['averaged_tensors'] or '-'} tensors, {(summary['averaged_bytes'] or 0) / 1e6:.3g} MB"),
        ("speed", f"{speed}{summary['bytes_sent'] / 1e6:,.1f} MB sent, {summary['wall_s']:.1f} s in all"),
        *(("lost", _lost(lost)) for lost in summary["peers_lost"]),
        *(("faults", text) for text in _recovered(summary.get("recovery"))),
        ("files", f"{run_dir}: summary.json, events.jsonl, config.yaml"),
        ("curves", shlex.join(["tensorboard", "--logdir", str(all_runs)])),
    ]
    if summary["model"]:
        lines.append(("model", f"torch.load({json.dumps(summary['model'], ensure_ascii=False)}, weights_only=True)"))
    stream.write("\n" + "".join(f"{name:<9} {text}\n" for name, text in lines))
    stream.flush()


def _recovered(recovery: Mapping[str, Any] | None) -> list[str]:
    """How a run got over the faults that happened to it on purpose."""
    if recovery is None:
        return []
    throughput, participation = (number(recovery[key], ".3f") for key in ("throughput", "participation"))
    return [
        *(f"{kind}: {_figures(figures)}" for kind, figures in recovery["by_kind"].items()),
        f"in all: {_figures(recovery)} (at most {recovery['most_rounds_lost']} by one)",
        f"throughput {throughput} of undisturbed, {participation} of the peers averaged in a round",
    ]


def _figures(figures: Mapping[str, Any]) -> str:
    seconds = {name: number(figures[f"{name}_s"], ".1f") for name in ("noticed_median", "back_median", "back_p90")}
    noticed = "" if figures["noticed_median_s"] is None else f"noticed after {seconds['noticed_median']} s, "
    back = f"{noticed}back after {seconds['back_median']} s (median), {seconds['back_p90']} s (90 %); "
    return (
        f"{figures['back']} of {figures['faults']} back; {back if figures['back'] else ''}"
        f"{figures['samples_lost']:,} samples lost, and rounds of other peers: {figures['rounds_lost']}"
    )


def mean(values: Sequence[float | None]) -> float | None:
    """Of those that are known; None: none is."""
    known = _known(values)
    return sum(known) / len(known) if known else None


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def number(value: float | None, spec: str) -> str:
    """By a format; a dash for what is not known."""
    return "-" if value is None else format(value, spec)


def _lost(lost: Mapping[str, Any]) -> str:
    then = "; replaced" if lost.get("is_replaced") else ""
    return f"peer {lost['peer_index']}: {_first_line(lost['cause'])}{then}"


def _first_line(text: str) -> str:
    first, *more = text.strip().splitlines() or [""]
    return f"{first} (the whole text is in events.jsonl)" if more else first
