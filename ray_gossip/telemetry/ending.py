"""What is wrong with the end of a run: `watch` tells it, and has the table. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ray_gossip.config import GossipConfig
from ray_gossip.records import PeerFinished
from ray_gossip.telemetry.state import PeerState, SwarmState, distance_of_sketches
from ray_gossip.telemetry.tally import peers_named

_WORSE = 0.03  # of accuracy
_ROUNDING = 1e-5  # of the norm: those who end with the same mean differ by 2e-8 at most


class Verdict(NamedTuple):
    kind: str  # of trouble
    text: str
    num_peers: int = 1  # of whom it is said; 1: of the swarm


def verdicts(state: SwarmState, gossip: GossipConfig) -> list[Verdict]:
    finished = [peer for peer in state.peers.values() if peer.finished and not peer.lost]
    found = (_agreement(state, finished), _merged(finished, gossip))
    return [verdict for verdict in found if verdict is not None]


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
    elif len(sketches) > 1 and _are_apart(sketches):
        text = "the peers averaged in parts that had lost sight of each other"
    else:
        return None
    text = f"no agreement in the end: {text}; what is saved may be one peer's own model: raise swarm.final_s"
    return Verdict("agreement", text, len(without) or 1)


def _merged(finished: Sequence[PeerState], gossip: GossipConfig) -> Verdict | None:
    merged = [peer.merged for peer in finished if peer.merged]
    own = [peer.evaluation for peer in finished if peer.evaluation]
    mean = math.fsum(each.accuracy for each in own) / len(own) if own else math.nan
    if len(own) < 2 or not merged or not merged[0].accuracy < mean - _WORSE:  # nothing is worse than nan
        return None
    samples = "train.recalibrate_samples"
    also = f", or raise {samples}" if merged[0].batch_norm != "none" else ""
    return Verdict(
        "merged",
        f"the merged model is worse than the peers: accuracy {merged[0].accuracy:.3f}, their mean {mean:.3f}; "
        f"they are too far apart: lower {'gossip.steps' if gossip.seconds is None else 'gossip.seconds'}{also}",
    )


def _are_apart(sketches: Sequence[Sequence[float]]) -> bool:
    """After a final round that all have averaged in, peers differ by rounding alone."""
    norm = math.sqrt(math.fsum(x * x for sketch in sketches for x in sketch) / len(sketches))
    return distance_of_sketches(sketches) > _ROUNDING * norm
