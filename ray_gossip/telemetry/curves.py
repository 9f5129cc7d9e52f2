"""Which curves TensorBoard shows. Pure: records in, points out.

Runs: `peer-00`, `peer-01`, ... and `swarm`. Where a tag stands in both, the swarm's is the mean over the
peers, so that TensorBoard draws it over theirs; `bands/...`, the mean once more, and `bands/..._min` and
`bands/..._max` around it are the swarm's alone: Custom Scalars draws them. A peer whose value is
not finite is left out of all of these.

The x axis of a peer is its own `local_step`. That of the swarm is the mean `local_step` over the peers that
the point is made of, so that its curves lie where the peers' lie; it never goes back when a newcomer lowers
the mean. The swarm gets a point when every peer that still owes reports has sent a new value, and a
last one when all have ended. The time of a point is the record's `wall_time`.

| tag | runs | what it is |
| --- | --- | --- |
| `train/loss` | peer, swarm, bands | mean training loss since the last report |
| `train/lr` | peer | learning rate |
| `train/samples_per_s` | peer | its speed since the last report |
| `eval/accuracy` | peer, swarm, bands | a peer's own parameters on the test split, 0 to 1 |
| `eval/loss`, `eval/...` | peer, swarm, bands | the same; those of `train.metrics` by their names |
| names of your own | peer, swarm, bands | what a loop of your own reports: `peer.report({"loss": ...})` |
| `merged/accuracy`, `merged/loss`, `merged/...` | peer, swarm | the merged model, after the final rounds |
| `round/outcome` | peer | 1 averaged, 0 alone, -1 partial, -2 failed: below 0 something went wrong |
| `round/matchmaking_s` | peer | from the round's start until the group was complete |
| `round/allreduce_s` | peer | from the complete group until the last part |
| `round/blocked_s` | peer | how long local steps stood still |
| `round/hidden_share` | peer | share of the round during which local steps went on, 0 to 1 |
| `round/staleness_steps` | peer | local steps taken between snapshot and delta |
| `round/group_size` | peer | peers in the group, itself included |
| `round/moved` | peer | L2 norm of what averaging changed in its parameters |
| `round/sent_mb` | peer | megabytes (10^6) sent in the round |
| `usage/trainer_mb` | peer | memory of the process that trains; what processes share counts in parts, here and below |
| `usage/network_mb`, `usage/helpers_mb` | peer | of its network side; of others, such as a DataLoader's workers |
| `usage/gpu_mb` | peer | GPU memory that torch has reserved |
| `usage/open_files` | peer | of the process that trains |
| `usage/memory_free_mb`, `usage/disk_free_mb` | peer | left of its machine or container; on the disk of checkpoints |
| `swarm/peers` | swarm | live peers |
| `swarm/samples_per_s` | swarm | sum over the peers |
| `swarm/sent_mb` | swarm | megabytes (10^6) sent so far |
| `swarm/rounds_averaged`, `_partial`, `_alone`, `_failed` | swarm | peer-rounds so far |
| `swarm/trouble` | swarm | how many kinds of trouble the run is in; 0 is healthy; the words are in `events.jsonl` |
| `swarm/consensus_distance_before` | swarm | over the snapshots of a round |
| `swarm/consensus_distance` | swarm | over what the round made of them; the last point: after the final rounds |
| `swarm/contraction` | swarm | (after / before)^2: the factor of the squared spread |
| `swarm/who_met_whom` | swarm | a picture: how often each pair of peers averaged together |
| `swarm/classes_of_peers` | swarm | a picture: samples of each class in each peer's shard |
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ray_gossip.records import (
    Evaluation,
    Fault,
    Notice,
    Outcome,
    PeerFinished,
    PeerLeft,
    PeerLost,
    PeerStarted,
    Progress,
    Record,
    Reported,
    RoundReport,
    Usage,
)
from ray_gossip.telemetry.layout import band
from ray_gossip.telemetry.state import SwarmRound, SwarmState

_Measure = Progress | Evaluation | Reported
_OUTCOME: dict[Outcome, int] = {"averaged": 1, "alone": 0, "partial": -1, "failed": -2}


class Point(NamedTuple):
    run: str  # directory below the run's
    tag: str
    value: float
    step: int
    wall_time: float  # seconds since 1970


class Curves:
    """Turns records into points. Give it each record after `state` has folded it."""

    def __init__(self, state: SwarmState) -> None:
        self._state = state
        self._news: dict[str, dict[int, _Measure]] = defaultdict(dict)  # since the swarm's last point
        self._last_step: dict[str, int] = defaultdict(int)
        self._num_troubles = 0

    def points(self, record: Record) -> Iterator[Point]:
        if isinstance(record, (Progress, Evaluation, Reported, RoundReport, Usage)):
            for tag, value in _of_peer(record).items():
                yield Point(f"peer-{record.peer_index:02d}", tag, value, record.local_step, record.wall_time)
        values, step = self._of_swarm(record)
        for tag, value in values.items():
            yield Point("swarm", tag, value, step, record.wall_time)

    def _of_swarm(self, record: Record) -> tuple[dict[str, float], int]:
        match record:
            case PeerStarted() | PeerLost() | PeerLeft():
                live = self._state.live_peers()
                return {"swarm/peers": len(live)}, self._step("train", [peer.local_step for peer in live])
            case Fault():
                live = self._state.live_peers()
                count = sum(isinstance(news, Fault) for news in self._state.news)
                return {"swarm/faults": count}, self._step("train", [peer.local_step for peer in live])
            case RoundReport() | Notice() if len(self._state.present_troubles()) != self._num_troubles:
                return self._troubles(), self._step("train", [])  # not with the next sweep, which may never come
            case Progress() | Evaluation() | Reported():
                kind = _kind(record)
                sweep = self._sweep(kind, record)
                values = _of_sweep(sweep) | (self._totals() if sweep and kind == "train" else {})
                return values, self._step(kind, [each.local_step for each in sweep])
            case PeerFinished() if not any(peer.owes_reports for peer in self._state.peers.values()):
                return self._end(), self._step("train", [max(peer.local_step for peer in self._state.peers.values())])
            case SwarmRound():
                values = {
                    "swarm/consensus_distance_before": record.consensus_distance_before,
                    "swarm/consensus_distance": record.consensus_distance,
                }
                if record.contraction is not None:
                    values["swarm/contraction"] = record.contraction
                return values, self._step("rounds", [record.local_step])
        return {}, 0

    def _sweep(self, kind: str, record: _Measure) -> Sequence[_Measure]:
        """The newest record of every peer, once each that owes reports has sent one; until then none."""
        news = self._news[kind]
        news[record.peer_index] = record
        peers = self._state.peers.values()
        if any(peer.owes_reports and peer.peer_index not in news for peer in peers):
            return ()
        del self._news[kind]
        return [news[peer.peer_index] for peer in peers if peer.is_live and peer.peer_index in news]

    def _end(self) -> dict[str, float]:
        """The last points, whichever peer was done first: totals and the consensus distance after the final
        rounds, as in the summary, and what each peer ended with."""
        finished = [(peer, peer.finished) for peer in self._state.peers.values() if peer.finished]
        ended: list[_Measure] = [peer.evaluation for peer, _ in finished if peer.evaluation]
        ended += [
            Reported(
                peer_index=peer.peer_index,
                wall_time=end.wall_time,
                local_step=peer.local_step,
                metrics=peer.reported,
            )
            for peer, end in finished
            if peer.reported
        ]
        distance = self._state.final_consensus_distance
        last = {} if distance is None else {"swarm/consensus_distance": distance}
        return _of_sweep(ended) | self._totals() | last

    def _troubles(self) -> dict[str, float]:
        self._num_troubles = len(self._state.present_troubles())
        return {"swarm/trouble": self._num_troubles}

    def _totals(self) -> dict[str, float]:
        state = self._state
        return {
            "swarm/peers": len(state.live_peers()),
            "swarm/sent_mb": state.bytes_sent / 1e6,
            **self._troubles(),
            **{f"swarm/rounds_{outcome}": count for outcome, count in state.rounds.items()},
        }

    def _step(self, kind: str, steps: Sequence[int]) -> int:
        mean = round(sum(steps) / len(steps)) if steps else 0
        self._last_step[kind] = max(self._last_step[kind], mean)
        return self._last_step[kind]


def _kind(record: _Measure) -> str:
    if isinstance(record, Progress):
        return "train"
    if isinstance(record, Reported):
        return " ".join(["reported", *sorted(record.metrics)])  # those of an epoch do not wait for those of a step
    return "eval" if record.model == "peer" else "merged"


def _of_peer(record: _Measure | RoundReport | Usage) -> dict[str, float]:
    if isinstance(record, Progress):
        known = {"train/loss": record.loss, "train/lr": record.lr, "train/samples_per_s": record.samples_per_s}
        return {tag: value for tag, value in known.items() if value is not None}
    if isinstance(record, Reported):
        return dict(record.metrics)
    if isinstance(record, Usage):
        return _of_usage(record)
    if isinstance(record, Evaluation):
        kind = _kind(record)
        accuracy = {} if record.accuracy is None else {"accuracy": record.accuracy}
        return {f"{kind}/{name}": value for name, value in {**accuracy, "loss": record.loss, **record.metrics}.items()}
    return {
        "round/outcome": _OUTCOME[record.outcome],
        "round/matchmaking_s": record.matchmaking_s,
        "round/allreduce_s": record.allreduce_s,
        "round/blocked_s": record.blocked_s,
        "round/hidden_share": _hidden_share(record),
        "round/staleness_steps": record.staleness_steps,
        "round/group_size": len(record.group),
        "round/moved": record.moved,
        "round/sent_mb": record.bytes_sent / 1e6,
    }


def _of_usage(usage: Usage) -> dict[str, float]:
    num_bytes = {
        "trainer": usage.trainer_bytes,
        "network": usage.network_bytes,
        "helpers": usage.helper_bytes or None,
        "gpu": usage.device_bytes,
        "memory_free": usage.memory_free_bytes,
        "disk_free": usage.disk_free_bytes,
    }
    known = {f"usage/{name}_mb": value / 1e6 for name, value in num_bytes.items() if value is not None}
    return {**known, "usage/open_files": usage.open_files}


def _hidden_share(record: RoundReport) -> float:
    took_s = record.matchmaking_s + record.allreduce_s
    return max(0.0, 1.0 - record.blocked_s / took_s) if took_s > 0 else 1.0


def _of_sweep(records: Iterable[_Measure]) -> dict[str, float]:
    of_tag: dict[str, list[float]] = defaultdict(list)
    for record in records:
        for tag, value in _of_peer(record).items():
            if math.isfinite(value):
                of_tag[tag].append(value)
    of_tag.pop("train/lr", None)
    speeds = of_tag.pop("train/samples_per_s", None)
    points = {"swarm/samples_per_s": sum(speeds)} if speeds else {}
    for tag, values in of_tag.items():
        points[tag] = sum(values) / len(values)
        if not tag.startswith("merged/"):  # there all peers agree
            points |= dict(zip(band(tag), (points[tag], min(values), max(values)), strict=True))
    return points
