"""What is wrong with the end of a run: `watch` tells it, and has the table. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ray_gossip.causes import NOT_FINITE
from ray_gossip.config import GossipConfig
from ray_gossip.records import PeerFinished
from ray_gossip.telemetry.advice import advice_on_end
from ray_gossip.telemetry.state import PeerState, SwarmState, distance_of_sketches
from ray_gossip.telemetry.tally import peers_named

_WORSE = 0.03  # of accuracy
_ROUNDING = 1e-5  # of the norm: those who end with the same mean differ by 2e-8 at most


class Verdict(NamedTuple):
    kind: str  # of trouble
    text: str
    num_peers: int = 1  # of whom it is said; 1: of the swarm


def verdicts(state: SwarmState, gossip: GossipConfig, *, is_saved: bool) -> list[Verdict]:
    """
    Args:
        is_saved: one of the models is.
    """
    finished = _finished(state)
    diverged = _diverged([peer for peer in finished if peer.peer_index in state.founders]) if is_saved else None
    found = (diverged, _agreement(state, finished), _merged(finished, gossip))
    return [verdict for verdict in found if verdict is not None]


def causes_of_the_end(state: SwarmState) -> list[str]:
    """Why final rounds did not average."""
    ends = [peer.finished for peer in _finished(state) if peer.finished]
    return [end.final_cause for end in ends if end.final_outcome != "averaged"]


def _finished(state: SwarmState) -> list[PeerState]:
    return [peer for peer in state.peers.values() if peer.finished and not peer.lost]


def _diverged(finished: Sequence[PeerState]) -> Verdict | None:
    """Of the peer whose model is saved: the first that took part in the final rounds, as in `summary`."""
    ends = [(peer.finished.final_outcome != "averaged", peer.peer_index, peer) for peer in finished if peer.finished]
    if not ends:
        return None
    *_, peer = min(ends, key=lambda end: end[:2])
    evaluation = peer.merged or peer.evaluation
    if peer.finished and not all(map(math.isfinite, peer.finished.sketch)):  # sums of all parameters
        what = "its parameters have become nan or infinite"
    elif evaluation and math.isnan(evaluation.loss) and not _is_nan(evaluation.accuracy):  # else nothing was measured
        what = "its loss on the test split is nan"
    else:
        return None
    return Verdict("diverged", f"the saved model is not finite: {what}; {advice_on_end([NOT_FINITE])}")


def _agreement(state: SwarmState, finished: Sequence[PeerState]) -> Verdict | None:
    """A peer that ends alone has agreed with nobody, unless it was the only one."""
    is_lone = len([peer for peer in state.live_peers() if peer.peer_index in state.founders]) <= 1
    agreed: list[PeerFinished] = []
    without: list[PeerFinished] = []
    for peer in finished:
        if (end := peer.finished) is not None:
            is_only_one = end.final_outcome == "alone" and is_lone and peer.merged is not None
            (agreed if end.final_outcome == "averaged" or is_only_one else without).append(end)
    sketches = [end.sketch for end in agreed if end.sketch]
    if without:
        first, peers = without[0], peers_named(end.peer_index for end in without)
        cause = f" ({first.final_cause})" if first.final_cause else ""
        text = f"the final round was {first.final_outcome} for {peers}{cause}"
        advice = advice_on_end([end.final_cause for end in without])
    elif len(sketches) > 1 and _are_apart(sketches):
        text, advice = "the peers averaged in parts that had lost sight of each other", "raise swarm.final_s"
    else:
        return None
    text = f"no agreement in the end: {text}; what is saved may be one peer's own model; {advice}"
    return Verdict("agreement", text, len(without) or 1)


def _merged(finished: Sequence[PeerState], gossip: GossipConfig) -> Verdict | None:
    merged = [peer.merged for peer in finished if peer.merged]
    accuracies = [peer.accuracy for peer in finished if peer.accuracy is not None]
    mean = math.fsum(accuracies) / len(accuracies) if accuracies else math.nan
    accuracy = merged[0].accuracy if merged else None
    if len(accuracies) < 2 or accuracy is None or not accuracy < mean - _WORSE:  # nothing is worse than nan
        return None
    samples = "train.recalibrate_samples"
    also = f", or raise {samples}" if merged[0].batch_norm != "none" else ""
    return Verdict(
        "merged",
        f"the merged model is worse than the peers: accuracy {accuracy:.3f}, their mean {mean:.3f}; "
        f"they are too far apart: lower {'gossip.steps' if gossip.seconds is None else 'gossip.seconds'}{also}",
    )


def _are_apart(sketches: Sequence[Sequence[float]]) -> bool:
    """After a final round that all have averaged in, peers differ by rounding alone."""
    norm = math.sqrt(math.fsum(x * x for sketch in sketches for x in sketch) / len(sketches))
    return distance_of_sketches(sketches) > _ROUNDING * norm


def _is_nan(value: float | None) -> bool:
    return value is not None and math.isnan(value)
