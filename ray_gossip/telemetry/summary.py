"""`summary.json`: the end of a run as one flat JSON object, for a person and for a script."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_gossip.records import Evaluation, PeerLost, PeerStarted
from ray_gossip.telemetry.state import News, PeerState, SwarmState

Summary = dict[str, Any]


def summarise(
    state: SwarmState,
    *,
    run_id: str,
    engine: str,
    started_at: float,
    ended_at: float,
    run_dir: Path,
    model: Path | None,
    recovery: Mapping[str, Any] | None = None,
) -> Summary:
    """The summary of a run that may have ended in any way; what never happened is None.

    Args:
        started_at, ended_at: seconds since 1970.
        model: where the merged model was saved, if it was.
        recovery: how it got over what happened to it on purpose.
    """
    peers = [peer for _, peer in sorted(state.peers.items())]
    merged = _merged(peers)
    averaged = [part for peer in peers if peer.started for part in peer.started.averaged]
    return {
        "run_id": run_id,
        "engine": engine,
        "num_peers": len(state.founders),
        "merged_accuracy": merged.accuracy if merged else None,
        "merged_loss": merged.loss if merged else None,
        "reported": means(peer.reported for peer in peers if not peer.lost),
        "peer_reported": [dict(peer.reported) for peer in peers],
        "merged_metrics": dict(merged.metrics) if merged else {},
        "merged_batch_norm": merged.batch_norm if merged else None,
        "peer_accuracy": [None if peer.lost else peer.accuracy for peer in peers],
        "peer_loss": [None if peer.lost or not peer.evaluation else peer.evaluation.loss for peer in peers],
        "rounds": dict(state.rounds),
        "causes": dict(state.causes.most_common()),
        "final_outcome": [peer.finished.final_outcome if peer.finished else None for peer in peers],
        "troubles": [dataclasses.asdict(trouble) for trouble in state.troubles.values()],
        "consensus_distance": state.consensus_distance,
        "samples_per_s": sum(_samples_per_s(peer) for peer in peers),
        "bytes_sent": state.bytes_sent,
        "averaged_tensors": len(averaged) or None,
        "averaged_bytes": sum(part.num_bytes for part in averaged) or None,
        "averaged": [dataclasses.asdict(part) | {"shape": list(part.shape)} for part in averaged],
        "wall_s": ended_at - started_at,
        "time_to_first_step_s": None if state.first_step_time is None else state.first_step_time - started_at,
        "peers_lost": [
            {"peer_index": lost.peer_index, "cause": lost.cause, "is_replaced": _is_back(lost, state.news[number:])}
            for number, lost in enumerate(state.news)
            if isinstance(lost, PeerLost)
        ],
        "peers_joined": sum(peer.peer_index not in state.founders for peer in peers),
        "recovery": recovery,
        "run_dir": str(run_dir),
        "model": str(model) if model else None,
    }


def means(measures: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Of each name, over those that have it."""
    found: dict[str, list[float]] = {}
    for measure in measures:
        for name, value in measure.items():
            found.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}


def _is_back(lost: PeerLost, later: Iterable[News]) -> bool:
    return any(isinstance(news, PeerStarted) and news.peer_index == lost.peer_index for news in later)


def _merged(peers: Sequence[PeerState]) -> Evaluation | None:
    """From a peer that took part in the final rounds, if one did: others have only their own parameters."""
    ends = [(peer.finished.final_outcome != "averaged", peer) for peer in peers if peer.finished]
    return min(ends, key=lambda end: end[0])[1].merged if ends else None


def _samples_per_s(peer: PeerState) -> float:
    """Over its whole training when it has finished, else what it did last; a lost peer does nothing."""
    if peer.lost:
        return 0.0
    if peer.finished and peer.finished.train_s > 0:
        before = peer.started.samples if peer.started else 0
        return (peer.finished.samples - before) / peer.finished.train_s
    return peer.progress.samples_per_s if peer.progress else 0.0
